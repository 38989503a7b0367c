"""What is offered of the SageMaker API, and how it differs: the words of docs/local_cloud.md.

Members are written as paths in botocore's input shape, lists left out, as in
`InputDataConfig.ChannelName`; braces stand for several members of one parent. A test compares the
operations with those that a server answers, and the members with botocore's and with the code.
"""

import re
from dataclasses import dataclass

from local_cloud.training import SPOT_DISCOUNT

BRACES = re.compile(r"^(.*?)\{([^{}]*)\}$")


@dataclass(frozen=True)
class Operation:
    """One operation of the API.

    Attributes:
        does: what it does here, in one or two sentences.
        uses: members of the request that are carried out.
        ignores: members that are checked, kept and described, but change nothing.
        refuses: what is answered with an error because it cannot be carried out here.
        differs: what happens otherwise than on AWS.
    """

    does: str
    uses: tuple = ()
    ignores: tuple = ()
    refuses: tuple = ()
    differs: tuple = ()


def members(text):
    """The paths that a text lists, its braces spelled out."""
    found = []
    for word in re.findall(r"[^\s{]+(?:\{[^}]*\})?", text):
        match = BRACES.match(word)
        found += [match[1] + name for name in match[2].split()] if match else [word]
    return tuple(found)


RUNS_NO_IMAGES = "A request that brings no script: what is inside an image cannot be run."
LISTS = "Lists them, with all filters, sort orders and pages of the service."
NETWORK = "VpcConfig EnableNetworkIsolation "
DESCRIBES_REQUEST = "The request as it was sent, and what became of it."

TRAINING = {
    "CreateTrainingJob": Operation(
        "Downloads the channels, runs the script as one process a host, reads its metrics from "
        "what it prints, uploads model and output.",
        uses=members(
            "TrainingJobName HyperParameters Environment "
            "AlgorithmSpecification.{TrainingImage ContainerEntrypoint ContainerArguments "
            "MetricDefinitions TrainingInputMode} "
            "InputDataConfig.{ChannelName DataSource InputMode ContentType} "
            "OutputDataConfig.{S3OutputPath CompressionType} ResourceConfig.{InstanceCount "
            "InstanceType} StoppingCondition.{MaxRuntimeInSeconds MaxWaitTimeInSeconds} "
            "EnableManagedSpotTraining CheckpointConfig.{S3Uri LocalPath} "
            "DebugHookConfig.{S3OutputPath LocalPath} "
            "TensorBoardOutputConfig.{S3OutputPath LocalPath} ProfilerConfig.S3OutputPath Tags"
        ),
        ignores=members(
            NETWORK + "RoleArn AlgorithmSpecification.{TrainingImageConfig "
            "EnableSageMakerMetricsTimeSeries} InputDataConfig.ShuffleConfig "
            "OutputDataConfig.KmsKeyId ResourceConfig.{VolumeSizeInGB VolumeKmsKeyId "
            "KeepAlivePeriodInSeconds TrainingPlanArn} StoppingCondition.MaxPendingTimeInSeconds "
            "EnableInterContainerTrafficEncryption ExperimentConfig RetryStrategy "
            "RemoteDebugConfig InfraCheckConfig SessionChainingConfig"
        ),
        refuses=(
            RUNS_NO_IMAGES,
            "`AlgorithmName`, built-in algorithms, instance groups.",
            "The input mode `Pipe`, channels that are not in S3, `AugmentedManifestFile`.",
            "The launchers of the older toolkit, MPI among them, except Torchrun.",
            "Debugger and profiler rules; their output folders are synchronised, so a job of your "
            "own can run the rules.",
        ),
        differs=(
            "`File` and `FastFile` are one: everything is there before the script starts.",
            "With the SDK's MPI driver, the job fails and says so.",
            "A spot job is interrupted only when asked, with `python -m local_cloud interrupt`.",
            f"`BillableTimeInSeconds` of a spot job is {1 - SPOT_DISCOUNT:.0%} of its training "
            "time: an assumption, because AWS names no rate.",
            "`InstanceType` is shown to the script and means nothing else; hosts share this "
            "machine's processors and GPUs.",
        ),
    ),
    "DescribeTrainingJob": Operation(DESCRIBES_REQUEST),
    "ListTrainingJobs": Operation(LISTS),
    "StopTrainingJob": Operation(
        "SIGTERM to every process of the job, SIGKILL after the grace period; what it has written "
        "is uploaded."
    ),
    "DeleteTrainingJob": Operation("Forgets a job that has ended; its objects in S3 stay."),
}

TUNING = {
    "CreateHyperParameterTuningJob": Operation(
        "Proposes hyperparameters and measures them with training jobs.",
        uses=members(
            "HyperParameterTuningJobName HyperParameterTuningJobConfig.{Strategy StrategyConfig "
            "HyperParameterTuningJobObjective ResourceLimits ParameterRanges "
            "TrainingJobEarlyStoppingType TuningJobCompletionCriteria RandomSeed} "
            "TrainingJobDefinition.{DefinitionName TuningObjective HyperParameterRanges "
            "StaticHyperParameters AlgorithmSpecification InputDataConfig OutputDataConfig "
            "ResourceConfig HyperParameterTuningResourceConfig StoppingCondition "
            "EnableManagedSpotTraining CheckpointConfig RetryStrategy Environment} "
            "TrainingJobDefinitions WarmStartConfig Autotune Tags"
        ),
        ignores=members(
            "TrainingJobDefinition.{RoleArn VpcConfig EnableNetworkIsolation "
            "EnableInterContainerTrafficEncryption}"
        ),
        refuses=("Whatever CreateTrainingJob refuses in one of the definitions.",),
        differs=(
            "`Bayesian` is Optuna's tree-structured Parzen estimator, where AWS uses Gaussian "
            "processes; the trials differ, the contract does not.",
            "Parallel trials share this machine: each is told to use its part of the processors.",
        ),
    ),
    "DescribeHyperParameterTuningJob": Operation(DESCRIBES_REQUEST),
    "ListHyperParameterTuningJobs": Operation(LISTS),
    "ListTrainingJobsForHyperParameterTuningJob": Operation(
        "Lists the trials, by their objective, too."
    ),
    "StopHyperParameterTuningJob": Operation("Starts no more trials and stops those that run."),
    "DeleteHyperParameterTuningJob": Operation("Forgets a tuning job that has ended."),
}

PROCESSING = {
    "CreateProcessingJob": Operation(
        "Downloads the inputs, runs the command as one process a host, uploads the outputs.",
        uses=members(
            "ProcessingJobName AppSpecification.{ImageUri ContainerEntrypoint ContainerArguments} "
            "Environment ProcessingInputs.{InputName S3Input} "
            "ProcessingOutputConfig.Outputs.{OutputName S3Output} "
            "ProcessingResources.ClusterConfig.{InstanceCount InstanceType} "
            "StoppingCondition.MaxRuntimeInSeconds Tags"
        ),
        ignores=members(
            "RoleArn NetworkConfig ExperimentConfig "
            "ProcessingResources.ClusterConfig.{VolumeSizeInGB VolumeKmsKeyId} "
            "ProcessingOutputConfig.KmsKeyId"
        ),
        refuses=(
            RUNS_NO_IMAGES,
            "Inputs and outputs without an S3 address: dataset definitions, the feature store.",
            "The input mode `Pipe`.",
        ),
    ),
    "DescribeProcessingJob": Operation(DESCRIBES_REQUEST),
    "ListProcessingJobs": Operation(LISTS),
    "StopProcessingJob": Operation("As StopTrainingJob."),
    "DeleteProcessingJob": Operation("Forgets a job that has ended."),
}

HOSTING = {
    "CreateModel": Operation(
        "Keeps the description of one container, or of a chain of containers.",
        uses=members(
            "ModelName PrimaryContainer.{Image ModelDataUrl ModelDataSource "
            "AdditionalModelDataSources Environment ContainerHostname Mode} Containers "
            "InferenceExecutionConfig.Mode Tags"
        ),
        ignores=members(
            NETWORK + "ExecutionRoleArn PrimaryContainer.{ImageConfig ContainerMetricsConfig "
            "InferenceSpecificationName MultiModelConfig}"
        ),
        refuses=(
            "A container without model data and without code: what is inside an image cannot be "
            "run.",
            "Built-in algorithms, multi-model containers, model packages.",
        ),
        differs=(
            "The handlers of the model's `inference.py` are called by a server of this project's "
            "own, which follows AWS's inference toolkit; an image whose name contains `pytorch` "
            "gets that toolkit's PyTorch defaults.",
        ),
    ),
    "DescribeModel": Operation("The request as it was sent."),
    "ListModels": Operation(LISTS),
    "DeleteModel": Operation("Forgets it; endpoints that serve it go on."),
    "CreateEndpointConfig": Operation(
        "Keeps the description of an endpoint.",
        uses=members(
            "EndpointConfigName ProductionVariants.{VariantName ModelName InitialInstanceCount "
            "InstanceType InitialVariantWeight ContainerStartupHealthCheckTimeoutInSeconds} "
            "ProductionVariants.ServerlessConfig.{MaxConcurrency MemorySizeInMB} "
            "DataCaptureConfig.{EnableCapture InitialSamplingPercentage DestinationS3Uri "
            "CaptureOptions CaptureContentTypeHeader} AsyncInferenceConfig.ClientConfig "
            "AsyncInferenceConfig.OutputConfig.{S3OutputPath S3FailurePath} Tags"
        ),
        ignores=members(
            NETWORK
            + "KmsKeyId ExecutionRoleArn ProductionVariants.{AcceleratorType CoreDumpConfig "
            "VolumeSizeInGB ModelDataDownloadTimeoutInSeconds EnableSSMAccess "
            "ManagedInstanceScaling RoutingConfig InferenceAmiVersion} "
            "ProductionVariants.ServerlessConfig.ProvisionedConcurrency "
            "AsyncInferenceConfig.OutputConfig.NotificationConfig"
        ),
        refuses=("Shadow variants, explainers, inference components.",),
        differs=("Memory and instance type are not enforced; nothing scales by itself.",),
    ),
    "DescribeEndpointConfig": Operation("The request as it was sent."),
    "ListEndpointConfigs": Operation(LISTS),
    "DeleteEndpointConfig": Operation("Forgets it; endpoints made from it go on."),
    "CreateEndpoint": Operation(
        "Starts one model server process for every instance and container.",
        uses=members("EndpointName EndpointConfigName Tags"),
        refuses=("Traffic that shifts step by step, and roll-back by CloudWatch alarms.",),
    ),
    "DescribeEndpoint": Operation("What it serves with, and how far a change of it has come."),
    "ListEndpoints": Operation(LISTS),
    "UpdateEndpoint": Operation(
        "Starts the new model servers, sends the traffic there, ends the old ones; the endpoint "
        "answers all the time, and keeps the old ones where the new do not start.",
        uses=members(
            "EndpointName EndpointConfigName RetainAllVariantProperties "
            "ExcludeRetainedVariantProperties DeploymentConfig"
        ),
        ignores=members("RetainDeploymentConfig"),
        refuses=("Traffic that shifts step by step, and roll-back by CloudWatch alarms.",),
    ),
    "UpdateEndpointWeightsAndCapacities": Operation(
        "Changes the shares of the traffic and the number of processes.",
        uses=members(
            "EndpointName DesiredWeightsAndCapacities.{VariantName DesiredWeight "
            "DesiredInstanceCount}"
        ),
        refuses=("Changes of the concurrency of serverless variants.",),
    ),
    "DeleteEndpoint": Operation("Ends its processes and forgets it."),
}

TRANSFORM = {
    "CreateTransformJob": Operation(
        "Starts the model, sends it every record of a data set, uploads the answers, ends it.",
        uses=members(
            "TransformJobName ModelName MaxConcurrentTransforms MaxPayloadInMB BatchStrategy "
            "Environment ModelClientConfig.{InvocationsTimeoutInSeconds InvocationsMaxRetries} "
            "TransformInput.{DataSource ContentType CompressionType SplitType} "
            "TransformOutput.{S3OutputPath Accept AssembleWith} TransformResources.InstanceCount "
            "DataProcessing.{InputFilter OutputFilter JoinSource} Tags"
        ),
        ignores=members(
            "TransformOutput.KmsKeyId TransformResources.{InstanceType VolumeKmsKeyId} "
            "ExperimentConfig"
        ),
        refuses=("Records other than lines (`RecordIO`, `TFRecord`), data capture.",),
    ),
    "DescribeTransformJob": Operation(DESCRIBES_REQUEST),
    "ListTransformJobs": Operation(LISTS),
    "StopTransformJob": Operation("Stops it; the answers to objects that were through stay in S3."),
}

TAGS = {
    "AddTags": Operation("Adds tags to any resource of this local cloud."),
    "ListTags": Operation("Lists the tags of a resource."),
    "DeleteTags": Operation("Removes tags from a resource."),
}

RUNTIME = {
    "InvokeEndpoint": Operation(
        "Sends one request to a model server and its answer back.",
        uses=members(
            "EndpointName Body ContentType Accept CustomAttributes TargetVariant "
            "TargetContainerHostname InferenceId"
        ),
        ignores=members("PrefixAwareId"),
        refuses=("Multi-model endpoints, inference components, explanations, sessions.",),
    ),
    "InvokeEndpointAsync": Operation(
        "Queues one request; its answer becomes an object in S3.",
        uses=members(
            "EndpointName InputLocation Body ContentType Accept CustomAttributes InferenceId "
            "RequestTTLSeconds InvocationTimeoutSeconds S3OutputPathExtension Filename"
        ),
        differs=("Nothing is sent to SNS.",),
    ),
    "InvokeEndpointWithResponseStream": Operation(
        "Refused: the inference toolkit does not stream answers either."
    ),
}

# Title of a section, botocore's name of the service, and the section's operations.
SECTIONS = (
    ("Training jobs", "sagemaker", TRAINING),
    ("Tuning jobs", "sagemaker", TUNING),
    ("Processing jobs", "sagemaker", PROCESSING),
    ("Models and endpoints", "sagemaker", HOSTING),
    ("Batch transform jobs", "sagemaker", TRANSFORM),
    ("Tags", "sagemaker", TAGS),
    ("Runtime", "sagemaker-runtime", RUNTIME),
)
