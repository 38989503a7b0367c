"""The client's side of `python -m local_cloud interrupt`: an operation that boto3 does not know."""

import json

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session

from local_cloud.errors import CloudError


def interrupt(instance, name):
    """Take the instances of the managed spot training job `name` away.

    Args:
        instance: the running local cloud.

    Raises:
        CloudError: it refuses, with its sentence.
    """
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": "SageMaker.LocalInterruptTrainingJob",
    }
    body = json.dumps({"TrainingJobName": name})
    request = AWSRequest(method="POST", url=f"{instance.url}/", data=body, headers=headers)
    credentials = Credentials(instance.access_key, instance.secret_key)
    SigV4Auth(credentials, "sagemaker", instance.region).add_auth(request)
    answer = URLLib3Session().send(request.prepare())
    if answer.status_code != 200:
        raise CloudError(json.loads(answer.content)["message"])
