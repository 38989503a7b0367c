"""Who the callers are and what their roles may do: what the SageMaker SDK asks before it uses one.

moto lacks IAM's policy simulator; the decision here is moto's own policy evaluation over the role's
real policies. And moto's callers are users, from whom the SDK takes no role when none is named;
here they have assumed a role, as in a notebook of SageMaker Studio.
"""

import json
import re
from urllib.parse import unquote
from xml.sax.saxutils import escape

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.exceptions import NotFoundException
from moto.iam.models import iam_backends

from local_cloud import ACCOUNT_ID

NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"
STS_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
ROLE = "LocalCloudExecution"  # What every caller has assumed; made at the start.
TRUST = {
    "Effect": "Allow",
    "Principal": {"Service": "sagemaker.amazonaws.com"},
    "Action": "sts:AssumeRole",
}
EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}


def make_role():
    """Create the callers' role unless it is there already."""
    backend = iam_backends[ACCOUNT_ID]["aws"]
    if ROLE in [role.name for role in backend.get_roles()]:
        return
    backend.create_role(
        role_name=ROLE,
        assume_role_policy_document=document(TRUST),
        path="/",
        permissions_boundary=None,
        description="What whoever calls this local cloud has assumed.",
        tags=[],
        max_session_duration="3600",
    )
    backend.put_role_policy(ROLE, "everything", document(EVERYTHING))


def document(statement):
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def get_caller_identity(form):
    """The XML answer to a GetCallerIdentity request: (status, body)."""
    arn = f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/{ROLE}/local"
    body = (
        f'<GetCallerIdentityResponse xmlns="{STS_NAMESPACE}"><GetCallerIdentityResult>'
        f"<Arn>{arn}</Arn><UserId>{ROLE}:local</UserId><Account>{ACCOUNT_ID}</Account>"
        "</GetCallerIdentityResult><ResponseMetadata><RequestId>local</RequestId>"
        "</ResponseMetadata></GetCallerIdentityResponse>"
    )
    return 200, body


def with_own_keys(text, instance):
    """moto's XML answer of STS with this start's keys, the only ones that are accepted here."""
    own = {"AccessKeyId": instance.access_key, "SecretAccessKey": instance.secret_key}
    for name, value in own.items():
        text = re.sub(rf"<{name}>[^<]*</{name}>", f"<{name}>{value}</{name}>", text)
    return text


def simulate_principal_policy(form):
    """The XML answer to a SimulatePrincipalPolicy request for a role.

    Args:
        form: the request's form fields as a mapping of strings.

    Returns:
        (status, body).
    """
    source = form.get("PolicySourceArn", "")
    try:
        role = iam_backends[ACCOUNT_ID]["aws"].get_role_by_arn(source)
    except NotFoundException:
        message = f"The role with name {source.rpartition('/')[2]} cannot be found."
        return 404, error("NoSuchEntity", message)
    policies = [IAMPolicy(unquote(text)) for text in role.policies.values()]
    policies += [IAMPolicy(policy) for policy in role.managed_policies.values()]
    resources = members(form, "ResourceArns") or ["*"]
    results = [
        result(action, resource, decide(policies, action, resource))
        for action in members(form, "ActionNames")
        for resource in resources
    ]
    body = (
        f'<SimulatePrincipalPolicyResponse xmlns="{NAMESPACE}"><SimulatePrincipalPolicyResult>'
        f"<IsTruncated>false</IsTruncated><EvaluationResults>{''.join(results)}"
        "</EvaluationResults></SimulatePrincipalPolicyResult><ResponseMetadata>"
        "<RequestId>local</RequestId></ResponseMetadata></SimulatePrincipalPolicyResponse>"
    )
    return 200, body


def members(form, name):
    """The values of a list parameter of the query protocol, in order."""
    values = []
    while f"{name}.member.{len(values) + 1}" in form:
        values.append(form[f"{name}.member.{len(values) + 1}"])
    return values


def decide(policies, action, resource):
    """`allowed`, `explicitDeny` or `implicitDeny`: a deny wins, silence denies."""
    verdicts = {policy.is_action_permitted(action, resource) for policy in policies}
    if PermissionResult.DENIED in verdicts:
        return "explicitDeny"
    return "allowed" if PermissionResult.PERMITTED in verdicts else "implicitDeny"


def result(action, resource, decision):
    return (
        f"<member><EvalActionName>{escape(action)}</EvalActionName>"
        f"<EvalResourceName>{escape(resource)}</EvalResourceName>"
        f"<EvalDecision>{decision}</EvalDecision>"
        "<MatchedStatements/><MissingContextValues/></member>"
    )


def error(code, message):
    return (
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type><Code>{code}</Code>'
        f"<Message>{escape(message)}</Message></Error></ErrorResponse>"
    )


# By the name of the operation: a function of the request's form that returns (status, body).
OPERATIONS = {
    "GetCallerIdentity": get_caller_identity,
    "SimulatePrincipalPolicy": simulate_principal_policy,
}
