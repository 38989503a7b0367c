"""The web app's infrastructure, as far as it can be judged without an account."""

import json
import re
import sys

import pytest
from cfnlint.api import lint
from cfnlint.decode.decode import decode_str
from malformed import http_event
from packaging.requirements import Requirement
from test_function import context

from studio.cloud import ROOT
from web import deploy, function

TEXT = deploy.TEMPLATE.read_text()
TEMPLATE = decode_str(TEXT)[0]
RESOURCES = TEMPLATE["Resources"]


def of_type(kind):
    return {
        name: resource.get("Properties", {})
        for name, resource in RESOURCES.items()
        if resource["Type"] == kind
    }


def plain(value):
    """Text of a value in which references stand as ${Name} or ${Name.Attribute}."""
    if isinstance(value, str):
        return value
    ((kind, argument),) = value.items()
    if kind == "Fn::GetAtt":
        argument = argument if isinstance(argument, str) else ".".join(argument)
    return argument if kind == "Fn::Sub" else f"${{{argument}}}"


def listed(value):
    return value if isinstance(value, list) else [value]


def statements(node=TEMPLATE):
    """Every statement of every policy, wherever it stands in the template."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from value if name == "Statement" else statements(value)
    elif isinstance(node, list):
        for value in node:
            yield from statements(value)


def events(properties):
    return [event["Properties"] for event in properties["Events"].values()]


(FUNCTION,) = of_type("AWS::Serverless::Function").values()
(API,) = of_type("AWS::Serverless::HttpApi").values()
(DISTRIBUTION,) = of_type("AWS::CloudFront::Distribution").values()
(HEADERS,) = of_type("AWS::CloudFront::ResponseHeadersPolicy").values()
HEADERS = HEADERS["ResponseHeadersPolicyConfig"]


def test_cfn_lint_finds_nothing():
    assert lint(TEXT, regions=["us-east-1", "eu-central-1"]) == []


# ---- permissions ----


def test_no_policy_allows_a_star():
    found = list(statements())
    assert len(found) == 6
    for statement in found:
        if statement["Effect"] == "Deny":
            continue  # There a star forbids more, not less.
        assert "NotAction" not in statement
        assert "NotResource" not in statement
        assert not any("*" in action for action in listed(statement["Action"]))
        for resource in listed(statement.get("Resource", [])):
            # A star only after the name of one thing: the objects of that bucket.
            assert re.fullmatch(r"\$\{\w+(\.Arn)?\}(/[a-z/]*\*)?", plain(resource)), resource
        assert "*" not in json.dumps(statement.get("Principal", ""))


def test_the_function_may_do_three_things_and_no_more():
    (role,) = of_type("AWS::IAM::Role").values()
    assert set(role) == {"AssumeRolePolicyDocument", "Policies"}
    (policy,) = role["Policies"]
    allowed = {
        (action, plain(s["Resource"]))
        for s in policy["PolicyDocument"]["Statement"]
        for action in listed(s["Action"])
    }
    assert allowed == {
        ("sagemaker:InvokeEndpoint", "${EndpointArn}"),
        ("s3:PutObject", "${CorrectionsBucket.Arn}/corrections/*"),
        ("logs:CreateLogStream", "${FunctionLogs.Arn}"),
        ("logs:PutLogEvents", "${FunctionLogs.Arn}"),
    }
    assert plain(FUNCTION["Role"]) == "${FunctionRole.Arn}"
    assert "Policies" not in FUNCTION
    prefix = FUNCTION["Environment"]["Variables"]["CORRECTIONS_PREFIX"]
    assert f"/{prefix}/*" in plain(policy["PolicyDocument"]["Statement"][1]["Resource"])


def test_the_endpoint_is_one_by_its_pattern():
    pattern = TEMPLATE["Parameters"]["EndpointArn"]["AllowedPattern"]
    arn = "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/"
    assert re.fullmatch(pattern, f"{arn}photos-1")
    assert not any(re.fullmatch(pattern, arn + name) for name in ("*", "photos-*", ""))


@pytest.mark.parametrize("name", of_type("AWS::S3::Bucket"))
def test_buckets_are_private_and_encrypted(name):
    bucket = RESOURCES[name]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert "ServerSideEncryptionConfiguration" in bucket["BucketEncryption"]
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert "AccessControl" not in bucket
    assert "WebsiteConfiguration" not in bucket


def test_only_this_distribution_reads_the_page():
    policies = of_type("AWS::S3::BucketPolicy")
    (statement,) = policies["PageBucketPolicy"]["PolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "cloudfront.amazonaws.com"}
    source = plain(statement["Condition"]["StringEquals"]["AWS:SourceArn"])
    assert source.endswith(":distribution/${Distribution}")
    (origin,) = DISTRIBUTION["DistributionConfig"]["Origins"]
    assert plain(origin["OriginAccessControlId"]) == "${PageAccess}"


def test_corrections_end_one_day_and_travel_encrypted():
    (rule,) = RESOURCES["CorrectionsBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert rule["Status"] == "Enabled"
    assert plain(rule["ExpirationInDays"]) == "${CorrectionsDays}"
    policies = of_type("AWS::S3::BucketPolicy")
    (statement,) = policies["CorrectionsBucketPolicy"]["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": False}}


# ---- who may call ----


def test_the_api_is_throttled_and_open_to_the_page_alone():
    assert set(API["DefaultRouteSettings"]) == {"ThrottlingRateLimit", "ThrottlingBurstLimit"}
    cors = API["CorsConfiguration"]
    assert cors["AllowOrigins"] == [{"Ref": "PageOrigin"}]
    assert "*" not in json.dumps(cors)
    assert "AllowCredentials" not in cors


@pytest.mark.parametrize("name", ["PageOrigin", "ApiOrigin"])
def test_an_origin_is_one_and_closed_until_it_is_known(name):
    parameter = TEMPLATE["Parameters"][name]
    assert parameter["Default"].endswith(".invalid")
    allowed = ("https://d111111abcdef8.cloudfront.net", "http://127.0.0.1:8080")
    assert all(re.fullmatch(parameter["AllowedPattern"], text) for text in allowed)
    refused = ("*", "null", "https://*", "https://a.org https://b.org", "https://a.org; x", "")
    assert not any(re.fullmatch(parameter["AllowedPattern"], text) for text in refused)


def test_the_page_is_told_to_trust_nothing_but_itself_and_the_api():
    security = HEADERS["SecurityHeadersConfig"]
    policy = plain(security["ContentSecurityPolicy"]["ContentSecurityPolicy"])
    directives = {d.split()[0]: d.split()[1:] for d in policy.strip().split("; ")}
    assert directives["default-src"] == ["'none'"]
    assert directives["script-src"] == ["'self'"]
    assert directives["connect-src"] == ["'self'", "${ApiOrigin}"]
    assert directives["frame-ancestors"] == ["'none'"]
    assert not re.search(r"\*|unsafe|https?:", policy)
    assert security["StrictTransportSecurity"]["AccessControlMaxAgeSec"] >= 31536000
    assert "ContentTypeOptions" in security
    assert plain(
        DISTRIBUTION["DistributionConfig"]["DefaultCacheBehavior"]["ResponseHeadersPolicyId"]
    ) == ("${PageHeaders}")


# ---- what is noticed ----


def test_logs_end_and_faults_raise_an_alarm():
    groups = of_type("AWS::Logs::LogGroup")
    assert all("RetentionInDays" in group for group in groups.values())
    assert plain(FUNCTION["LoggingConfig"]["LogGroup"])[2:-1] in groups
    (alarm,) = of_type("AWS::CloudWatch::Alarm").values()
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/ApiGateway", "5xx")
    assert alarm["Dimensions"] == [{"Name": "ApiId", "Value": {"Ref": "Api"}}]


# ---- template and function agree ----


def test_the_routes_of_the_template_are_those_of_the_function():
    routes = {(event["Method"], event["Path"]) for event in events(FUNCTION)}
    source = (deploy.HERE / "function.py").read_text()
    decorated = re.findall(r"^@app\.(\w+)\(\"(/\w+)\"\)", source, re.MULTILINE)
    assert routes == {(method.upper(), path) for method, path in decorated}
    assert {path for _, path in routes} == set(function.PATHS)
    for method, path in routes:
        response = function.handler(http_event(method, path, "text/plain", b"?"), context())
        assert response["statusCode"] == 415
    assert all(event["PayloadFormatVersion"] == "2.0" for event in events(FUNCTION))


def test_the_function_gets_the_environment_that_it_reads():
    source = (deploy.HERE / "function.py").read_text()
    read = set(re.findall(r"""os\.environ\[["'](\w+)["']\]""", source))
    assert read
    assert read <= set(FUNCTION["Environment"]["Variables"])
    module, name = FUNCTION["Handler"].split(".")
    assert (deploy.HERE / f"{module}.py").samefile(function.__file__)
    assert callable(getattr(function, name))


def test_every_attempt_ends_before_the_function_and_that_before_the_api():
    # A question asks the endpoint once; a correction writes two objects.
    for config, calls in ((function.CONFIG, 1), (function.S3_CONFIG, 2)):
        attempt = config.connect_timeout + config.read_timeout
        longest = calls * config.retries["total_max_attempts"] * attempt
        assert longest < FUNCTION["Timeout"] < 30


def test_the_package_is_for_the_runtime_of_the_template():
    assert FUNCTION["Runtime"] == f"python{deploy.VERSION}"
    assert FUNCTION["Architectures"] == ["arm64"]
    assert all("aarch64" in p for p in deploy.PLATFORM if p.startswith("manylinux"))


def test_the_package_has_what_the_function_imports_pinned_to_the_byte():
    lines = [line for line in deploy.REQUIREMENTS.read_text().splitlines() if line[0] != "#"]
    pinned = {}
    for line in lines:
        match = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}  # .{5,}", line)
        assert match, line
        pinned[match[1]] = match[2]
    source = (deploy.HERE / "function.py").read_text()
    modules = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    # boto3 comes with the runtime.
    modules -= {"boto3", "botocore", *sys.stdlib_module_names}
    assert modules == {"PIL", "aws_lambda_powertools", "pydantic"}
    assert {"pillow", "aws-lambda-powertools", "pydantic"} <= set(pinned)
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line.partition("#")[0]) if re.match(r"\w", line) else None
        if requirement and requirement.name in pinned:
            assert requirement.specifier.contains(pinned[requirement.name]), line
