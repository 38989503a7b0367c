"""The part of AWS that a SageMaker project needs, carried out on this machine.

`python -m local_cloud start` runs one server on 127.0.0.1. Requests signed for S3, IAM, STS and
CloudWatch Logs are answered by moto; requests signed for SageMaker are answered here, and really
carried out: training, tuning, processing and transform jobs and endpoints are child processes. The
clients are the unmodified SageMaker SDK, boto3 and the AWS CLI, pointed here by the variables that
`python -m local_cloud env` prints.
"""

ACCOUNT_ID = "123456789012"  # moto's default account, so that ARNs of both halves agree.
DEFAULT_REGION = "us-east-1"
