"""Deploying and removing the web app, against the AWS services that moto has.

moto knows neither SAM nor CloudFront or HTTP APIs in CloudFormation: the stack of these tests has
the rest of the template (buckets, role, log, function) and fixed addresses for what is missing.
"""

import io
import json
import sys
import tarfile
import uuid
from types import SimpleNamespace

import boto3
import pytest
from awscli.customizations.cloudformation.yamlhelper import yaml_parse
from botocore.stub import Stubber
from moto.cloudformation.models import ChangeSet, OutputMap
from moto.server import ThreadedMotoServer
from PIL import Image
from samples import encode, noise

from web import deploy, site

REGION, STACK, ENDPOINT = "eu-central-1", "photos", "Photos-1"
PAGE_URL, API_URL = "https://d111.cloudfront.net", "https://a1b2.execute-api.test"
MODEL = {"class_names": ["furniture", "watches"], "image_size": 112, "threshold": 0.4}
FILES = {"index.html": "<!doctype html>", "app.js": "start()", "style.css": "body {}"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes: a picture that says how it lies, and a transparent one."""
    folder = tmp_path_factory.mktemp("photos")
    for name in MODEL["class_names"]:
        (folder / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by a quarter.
    exif[0x010E] = "a name in the metadata"
    picture = Image.fromarray(noise(600, 1200))
    picture.save(folder / "furniture" / "a.jpg", exif=exif)
    (folder / "furniture" / "b.jpg").write_bytes(b"never read")
    (folder / "watches" / "notes.txt").write_text("never read")
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.save(folder / "watches" / "c.png")
    return folder


# ---- the site ----


@pytest.fixture
def built(page, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "PAGE", page)
    pictures = deploy.sample_pictures(photos)
    arguments = {"api": f"{API_URL}/", "model_json": MODEL, "pictures": pictures, "title": "Photos"}
    return site.build(tmp_path / "site", **arguments)


def test_the_site_is_the_page_and_what_it_reads(built, photos):
    names = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert names == {*FILES, "site.json", "samples/1.jpg", "samples/2.jpg"}
    assert json.loads((built / "site.json").read_text()) == {
        "title": "Photos",
        "api": API_URL,
        "image_size": 112,
        "classes": ["furniture", "watches"],
        "threshold": 0.4,
        "samples": [
            {"file": "samples/1.jpg", "alt": "sample photo: furniture"},
            {"file": "samples/2.jpg", "alt": "sample photo: watches"},
        ],
        "about": "The model knows furniture and watches, and nothing else.",
    }


def test_samples_are_upright_small_on_white_and_without_metadata(built):
    turned, clear = (Image.open(built / "samples" / f"{n}.jpg") for n in (1, 2))
    assert turned.size == (256, 512)
    assert not turned.getexif()
    assert clear.getpixel((20, 20)) == (255, 255, 255)


def test_a_model_that_never_abstains_has_no_threshold(built):
    site.build(built, api=API_URL, model_json={**MODEL, "threshold": 0.0}, pictures=[], title="x")
    assert json.loads((built / "site.json").read_text())["threshold"] is None


@pytest.mark.parametrize("model", [{}, {"class_names": ["a"]}, None, {"class_names": 1}])
def test_what_is_no_model_is_refused(built, model):
    with pytest.raises(ValueError, match=r"not the model\.json"):
        site.build(built, api=API_URL, model_json=model, pictures=[], title="x")


def test_a_broken_picture_is_named(built, photos):
    broken = photos / "furniture" / "b.jpg"
    with pytest.raises(ValueError, match=r"b\.jpg is not a readable picture"):
        site.build(built, api=API_URL, model_json=MODEL, pictures=[broken], title="x")


def test_every_file_of_the_page_has_a_content_type():
    for path in site.PAGE.rglob("*"):
        assert path.is_dir() or path.suffix in deploy.CONTENT_TYPES


# ---- the package ----


@pytest.mark.parametrize("python", ["there", "absent"])
def test_the_package_is_compiled_where_a_python_of_that_version_is(
    python, tmp_path, monkeypatch, capfd
):
    nothing = tmp_path / "requirements.txt"
    nothing.write_text("# Downloads nothing.\n")
    monkeypatch.setattr(deploy, "REQUIREMENTS", nothing)
    found = {"there": sys.executable, "absent": None}[python]
    monkeypatch.setattr(deploy.shutil, "which", lambda name: found)
    deploy.collect(tmp_path / "function")
    compiled = list(tmp_path.glob("function/__pycache__/function.*.pyc"))
    assert len(compiled) == (python == "there")
    # PEP 552: the lowest bit of the flags says that a hash stands in place of a date.
    assert all(path.read_bytes()[4] == 1 for path in compiled)
    assert ("There is no python3.12" in capfd.readouterr().out) == (python == "absent")


# ---- an account ----


def apply_with_outputs(change_set):
    """What moto's change sets do, and the stack's outputs, which they forget."""
    stack = change_set.stack
    stack.resource_map.update(change_set.template_dict, change_set.parameters)
    stack.output_map = OutputMap(stack.resource_map, change_set.template_dict, stack.stack_id)


@pytest.fixture(scope="module")
def account():
    """An account of moto's, in which an endpoint serves a model; its S3 and clients."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_DEFAULT_REGION", REGION)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.delenv("AWS_PROFILE", raising=False)
    patch.setattr(boto3, "DEFAULT_SESSION", None)  # It would keep another module's credentials.
    patch.setattr(ChangeSet, "apply", apply_with_outputs)
    serve_model()
    yield
    server.stop()
    patch.undo()


def serve_model():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        text = json.dumps(MODEL).encode()
        info = tarfile.TarInfo("./model.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    s3, sagemaker = boto3.client("s3"), boto3.client("sagemaker")
    place = {"LocationConstraint": REGION}
    s3.create_bucket(Bucket="models", CreateBucketConfiguration=place)
    s3.put_object(Bucket="models", Key="m/model.tar.gz", Body=archive.getvalue())
    sagemaker.create_model(
        ModelName="m",
        ExecutionRoleArn="arn:aws:iam::123456789012:role/tester",
        PrimaryContainer={"Image": "any:1", "ModelDataUrl": "s3://models/m/model.tar.gz"},
    )
    variant = {"VariantName": "only", "ModelName": "m", "InstanceType": "ml.m5.large"}
    variant |= {"InitialInstanceCount": 1, "InitialVariantWeight": 1.0}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="c")


def reduced_template(distribution):
    """The template without what moto's CloudFormation cannot make."""
    template = json.loads(json.dumps(yaml_parse(deploy.TEMPLATE.read_text())))
    del template["Transform"]
    kept = ("CorrectionsBucket", "PageBucket", "FunctionRole", "FunctionLogs")
    properties = template["Resources"]["ClassifyFunction"]["Properties"]
    names = ("FunctionName", "Handler", "Runtime", "Role", "Environment", "Timeout")
    function = {name: properties[name] for name in names}
    template["Resources"] = {name: template["Resources"][name] for name in kept}
    template["Resources"]["ClassifyFunction"] = {
        "Type": "AWS::Lambda::Function",
        "Properties": {**function, "Code": properties["CodeUri"]},
    }
    known = {"PageUrl": PAGE_URL, "ApiUrl": API_URL, "DistributionId": distribution}
    for name, value in known.items():
        template["Outputs"][name]["Value"] = value
    return json.dumps(template)


def distribution():
    origin = {"Id": "page", "DomainName": "page.s3.amazonaws.com"}
    origin["S3OriginConfig"] = {"OriginAccessIdentity": ""}
    answer = boto3.client("cloudfront").create_distribution(
        DistributionConfig={
            "CallerReference": str(uuid.uuid4()),
            "Comment": "",
            "Enabled": True,
            "Origins": {"Quantity": 1, "Items": [origin]},
            "DefaultCacheBehavior": {
                "TargetOriginId": "page",
                "ViewerProtocolPolicy": "https-only",
            },
        }
    )
    return answer["Distribution"]["Id"]


@pytest.fixture
def here(account, page, tmp_path, monkeypatch):
    """The deployment of the reduced template, without libraries; returns the distribution."""
    number = distribution()
    template, nothing = tmp_path / "template.yaml", tmp_path / "requirements.txt"
    template.write_text(reduced_template(number))
    nothing.write_text("# Downloads nothing.\n")
    monkeypatch.setattr(deploy, "TEMPLATE", template)
    monkeypatch.setattr(deploy, "LAST_CALLS_SECONDS", 0)
    monkeypatch.setattr(deploy, "REQUIREMENTS", nothing)
    monkeypatch.setattr(site, "PAGE", page)
    return number


@pytest.fixture
def answering(monkeypatch):
    """Have these answers typed, one after the other; a further question would fail."""

    def answer(*texts):
        answers = list(texts)
        monkeypatch.setattr("builtins.input", lambda question: answers.pop(0))
        return answers

    return answer


def up(photos, *more):
    arguments = ["deploy", "--stack", STACK, "--endpoint", ENDPOINT, "--pictures", str(photos)]
    return deploy.main([*arguments, *more])


def down(*more):
    return deploy.main(["remove", "--stack", STACK, *more])


def stacks():
    return boto3.client("cloudformation").describe_stacks()["Stacks"]


def everything():
    """What an account holds of the app: stacks, buckets, functions, roles and log groups."""
    return {
        "stacks": [s["StackName"] for s in stacks()],
        "buckets": [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]],
        "functions": boto3.client("lambda").list_functions()["Functions"],
        "roles": boto3.client("iam").list_roles()["Roles"],
        "logs": boto3.client("logs").describe_log_groups()["logGroups"],
    }


def test_without_a_yes_nothing_is_made_and_the_price_is_named(here, photos, answering, capfd):
    before = everything()
    answering("ok")
    assert up(photos) == 1
    out, err = capfd.readouterr()
    assert "$4 for a million questions" in out
    assert f"The endpoint {ENDPOINT} is paid by the hour" in out
    assert err == "web.deploy: the answer was not yes: nothing was changed\n"
    assert everything() == before


def test_an_endpoint_that_does_not_exist_is_named(here, photos, capfd):
    assert deploy.main(["deploy", "--endpoint", "none"]) == 1
    assert (
        "web.deploy: the endpoint 'none' of eu-central-1 cannot be used" in capfd.readouterr().err
    )


def test_what_is_missing_is_named_before_anything_is_made(monkeypatch, capfd):
    assert deploy.main(["deploy", "--endpoint", ""]) == 1
    assert "`make web-deploy ENDPOINT=…`" in capfd.readouterr().err
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert deploy.main(["remove"]) == 1
    assert "no AWS region is set" in capfd.readouterr().err


def test_deploy_deploy_again_correct_and_remove(
    here, photos, answering, capfd, tmp_path, monkeypatch
):
    before = everything()

    # ---- the first deployment ----
    answering("yes")
    assert up(photos, "--email", "me@example.org") == 0, capfd.readouterr()
    assert f"The page is {PAGE_URL};" in capfd.readouterr().out
    (stack,) = stacks()
    outputs = {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}
    parameters = {p["ParameterKey"]: p["ParameterValue"] for p in stack["Parameters"]}
    arn = f"arn:aws:sagemaker:{REGION}:123456789012:endpoint/"
    assert parameters["EndpointArn"].lower() == f"{arn}{ENDPOINT}".lower()
    assert (parameters["PageOrigin"], parameters["ApiOrigin"]) == (PAGE_URL, API_URL)
    assert parameters["AlarmEmail"] == "me@example.org"
    functions = boto3.client("lambda")
    configuration = functions.get_function_configuration(FunctionName=STACK)
    environment = configuration["Environment"]["Variables"]
    assert json.loads(environment["CLASS_NAMES"]) == MODEL["class_names"]
    assert environment["ENDPOINT_NAME"] == ENDPOINT

    s3 = boto3.resource("s3")
    pages = s3.Bucket(outputs["PageBucket"])
    served = {item.key: item.Object() for item in pages.objects.all()}
    assert set(served) == {*FILES, "site.json", "samples/1.jpg", "samples/2.jpg"}
    assert served["app.js"].content_type == "text/javascript; charset=utf-8"
    assert "must-revalidate" in served["index.html"].cache_control
    assert json.load(served["site.json"].get()["Body"])["api"] == API_URL
    cloudfront = boto3.client("cloudfront")
    invalidations = cloudfront.list_invalidations(DistributionId=here)["InvalidationList"]
    assert len(invalidations["Items"]) == 1

    # ---- the second: no question, what is stale goes, what was set stays ----
    pages.put_object(Key="old.js", Body=b"")
    answering()
    assert deploy.main(["deploy", "--stack", STACK, "--endpoint", ENDPOINT]) == 0
    assert {item.key for item in pages.objects.all()} == {*FILES, "site.json"}
    (stack,) = stacks()
    assert {"ParameterKey": "PageOrigin", "ParameterValue": PAGE_URL} in stack["Parameters"]
    assert {"ParameterKey": "AlarmEmail", "ParameterValue": "me@example.org"} in stack["Parameters"]

    # ---- removal ----
    corrections = s3.Bucket(outputs["CorrectionsBucket"])
    picture = encode(noise())
    corrections.Versioning().enable()  # Somebody may have; old versions must go, too.
    for _ in range(2):
        corrections.put_object(Key="corrections/watches/1.png", Body=picture)
    folder = tmp_path / "saved"
    for answers in (["perhaps"], ["yes", "no"]):
        answering(*answers)
        assert down("--corrections", str(folder)) == 1
        assert not folder.exists()
        assert len(list(corrections.objects.all())) == 1

    def meanwhile(question):
        corrections.put_object(Key="corrections/watches/late.png", Body=picture)
        return "no" if "Download" in question else "yes"

    monkeypatch.setattr("builtins.input", meanwhile)
    assert down("--corrections", str(folder)) == 1
    assert "corrections have arrived meanwhile" in capfd.readouterr().err
    corrections.Object("corrections/watches/late.png").delete()
    answering("yes", "yes")
    assert down("--corrections", str(folder)) == 0
    assert (folder / "corrections" / "watches" / "1.png").read_bytes() == picture
    assert sum(path.is_file() for path in folder.rglob("*")) == 1
    out = capfd.readouterr().out
    assert out.endswith(f"Nothing is left of the web app {STACK} in {REGION}.\n")
    assert everything() == before
    assert down() == 0  # Nothing to remove is no fault.


def test_a_stack_that_fails_says_why(account, monkeypatch):
    there = deploy.Account(STACK)
    events = [
        ("Page", "CREATE_FAILED", "Resource creation cancelled"),
        ("Role", "CREATE_FAILED", "not authorized to perform: iam:CreateRole"),
        ("Role", "CREATE_IN_PROGRESS", None),
        (STACK, "UPDATE_IN_PROGRESS", "User Initiated"),
        ("Page", "UPDATE_FAILED", "what failed the time before"),
    ]
    names = ("LogicalResourceId", "ResourceStatus", "ResourceStatusReason")
    answer = [{k: v for k, v in zip(names, event) if v} for event in events]
    for event in answer:
        event |= {"StackId": "s", "EventId": "e", "StackName": STACK, "Timestamp": 0}
    monkeypatch.setattr(there, "aws", lambda *arguments: SimpleNamespace(returncode=255))
    with Stubber(there.cloudformation) as stub:
        stub.add_response("describe_stack_events", {"StackEvents": answer})
        with pytest.raises(deploy.DeployError, match=r"was not deployed: not authorized"):
            there.push("template.yaml", {})


@pytest.mark.parametrize("command", [["deploy", "--endpoint", "mine"], ["remove"]])
def test_a_stack_of_something_else_is_neither_changed_nor_deleted(
    account, monkeypatch, capfd, command
):
    stack = {"StackName": STACK, "CreationTime": 0, "StackStatus": "CREATE_COMPLETE"}
    answer = {"Stacks": [{**stack, "Description": "Somebody's database"}]}
    there = deploy.Account(STACK)
    monkeypatch.setattr(deploy, "Account", lambda name: there)
    monkeypatch.setattr(deploy, "endpoint_facts", lambda *_: ("arn", {}))
    with Stubber(there.cloudformation) as stub:
        stub.add_response("describe_stacks", answer)
        assert deploy.main([*command, "--stack", STACK]) == 1
    assert "is of something else: choose another STACK" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["", "UPPER", "a_b", "-", "x" * 28])
def test_a_name_that_no_bucket_can_have_is_refused(name, capfd):
    with pytest.raises(SystemExit):
        deploy.main(["remove", "--stack", name])
    assert "1 to 27 of a-z, 0-9 and -" in capfd.readouterr().err
