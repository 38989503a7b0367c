"""Starts the entry points as jobs, in the words of the notebooks' cells."""

from boto3.s3.transfer import TransferConfig
from sagemaker.core.processing import FrameworkProcessor
from sagemaker.core.training.configs import (
    CheckpointConfig,
    Compute,
    InputData,
    SourceCode,
    StoppingCondition,
)
from sagemaker.train import ModelTrainer

from studio.evaluation import channel, job_name, report
from studio.jobs import (
    fetch_archive,
    follow,
    keys_below,
    latest_job,
    split_uri,
    stage_source,
)

MACHINE = "ml.m5.large"


class CourseJobs:
    """The jobs of one cloud.

    Args:
        pictures: folder with the splits train, valid and test.
        folder: for the code that the jobs run, and for the models that they leave.
    """

    def __init__(self, cloud, pictures, folder):
        self.cloud, self.folder = cloud, folder
        self.source = stage_source(folder / "source")
        self.uris = {
            split: cloud.session.upload_data(
                str(pictures / split), cloud.bucket, f"{cloud.prefix}/data/{split}"
            )
            for split in ("train", "valid", "test")
        }

    def trainer(self, name, hyperparameters, script="train_model.py", compute=None, **options):
        """A ModelTrainer on one instance, unless `compute` has other words for it."""
        return ModelTrainer(
            training_image=self.cloud.training_image,
            source_code=SourceCode(source_dir=self.source, entry_script=script),
            compute=Compute(instance_type=MACHINE, **{"instance_count": 1, **(compute or {})}),
            hyperparameters=hyperparameters,
            base_job_name=f"{self.cloud.run}-{name}",
            role=self.cloud.role,
            sagemaker_session=self.cloud.session,
            **options,
        )

    def channels(self, *names):
        return [InputData(channel_name=name, data_source=self.uris[name]) for name in names]

    def start(self, name, hyperparameters, **options):
        """Start a training job; return its full name."""
        trainer = self.trainer(name, hyperparameters, **options)
        inputs = self.channels("train", "valid")
        trainer.train(input_data_config=inputs, wait=False, logs=False)
        return latest_job(self.cloud, f"{self.cloud.run}-{name}")

    def train(self, name, hyperparameters, **options):
        """Run a training job to its end; return its description."""
        return follow(self.cloud, self.start(name, hyperparameters, **options))

    def model(self, job):
        """Fetch the model that a training job left; return its folder."""
        uri = job["ModelArtifacts"]["S3ModelArtifacts"]
        folder = self.folder / job["TrainingJobName"]
        if uri.endswith(".tar.gz"):
            return fetch_archive(self.cloud, uri, folder)
        bucket, prefix = split_uri(uri)
        # Each file in one request: for every part of a file the local cloud reads all of it.
        whole = TransferConfig(multipart_threshold=1 << 40)
        for key in keys_below(self.cloud, uri):
            path = folder / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.cloud.client("s3").download_file(bucket, key, str(path), Config=whole)
        return folder

    def process(self, name, script, inputs, output, arguments):
        """Run a processing job to its end.

        Args:
            inputs: {channel: address in S3}.
            output: channel that goes to the address of this name, which is in `uris` then.

        Raises:
            JobFailed: it failed, also then with its output in S3.
        """
        processor = FrameworkProcessor(
            image_uri=self.cloud.processing_image,
            command=["python3"],
            instance_type=MACHINE,
            instance_count=1,
            role=self.cloud.role,
            base_job_name=f"{self.cloud.run}-{name}",
            sagemaker_session=self.cloud.session,
        )
        self.uris[output] = self.cloud.s3_uri(output)
        processor.run(
            code=script,
            source_dir=self.source,
            arguments=arguments,
            inputs=[channel(*each) for each in inputs.items()],
            outputs=[report(output, self.uris[output])],
            wait=False,
            logs=False,
        )
        return follow(self.cloud, job_name(processor), kind="ProcessingJob")


def spot(cloud, name):
    """What a ModelTrainer is told to train on spot capacity, with checkpoints of this name."""
    limits = {"max_runtime_in_seconds": 1200, "max_wait_time_in_seconds": 2400}
    return {
        "compute": {"enable_managed_spot_training": True},
        "checkpoint_config": CheckpointConfig(s3_uri=cloud.s3_uri("checkpoints", name)),
        "stopping_condition": StoppingCondition(**limits),
    }
