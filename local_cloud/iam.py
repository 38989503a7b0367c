"""IAM's policy simulator, which moto lacks and the SageMaker SDK asks before it uses a role.

The decision is moto's own policy evaluation over the role's real policies.
"""

from urllib.parse import unquote
from xml.sax.saxutils import escape

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.exceptions import NotFoundException
from moto.iam.models import iam_backends

from local_cloud import ACCOUNT_ID

ACTION = "SimulatePrincipalPolicy"
NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"


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
        f'<{ACTION}Response xmlns="{NAMESPACE}"><{ACTION}Result><IsTruncated>false</IsTruncated>'
        f"<EvaluationResults>{''.join(results)}</EvaluationResults></{ACTION}Result>"
        f"<ResponseMetadata><RequestId>local</RequestId></ResponseMetadata></{ACTION}Response>"
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
