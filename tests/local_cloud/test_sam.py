"""Templates are read as SAM and CloudFormation describe them; those that are none are refused."""

import pytest

from local_cloud import sam
from local_cloud.errors import CloudError

SMALLEST = """
Resources:
  F:
    Type: AWS::Serverless::Function
    Properties:
      Handler: app.handler
      Events: {A: {Type: HttpApi}}
"""
WHOLE = """
Parameters:
  Stage: {Type: String, Default: test}
  Debug: {Type: String, Default: "yes"}
Conditions:
  IsTest: !Equals [!Ref Stage, test]
  IsLive: !Not [!Condition IsTest]
  Both: !And [!Condition IsTest, !Equals [!Ref Debug, "yes"]]
Mappings: {Sizes: {test: {memory: 512}}}
Globals:
  Function: {Timeout: 9, Environment: {Variables: {A: "1", B: "2"}}}
  HttpApi:
    CorsConfiguration: {AllowOrigins: ["https://*"]}
    DefaultRouteSettings: {ThrottlingRateLimit: 5, ThrottlingBurstLimit: 6}
Resources:
  Table: {Type: AWS::DynamoDB::Table}
  Other: {Type: AWS::Serverless::Function, Condition: IsLive, Properties: {Handler: x.y}}
  F:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: !Sub "${AWS::StackName}-${Stage}"
      Runtime: python3.11
      Handler: app.handler
      MemorySize: !FindInMap [Sizes, !Ref Stage, memory]
      Role: !GetAtt Role.Arn
      Environment:
        Variables:
          B: !If [Both, both, neither]
          C: !Join ["-", [a, !Ref Table, !Select [1, !Split [",", "x,y"]]]]
          D: !Sub ["${here} ${!kept}", {here: !Ref "AWS::Region"}]
          E: true
          F: !GetAtt Table.Arn
          G: !GetAtt Role.Arn
      Events:
        One: {Type: HttpApi, Properties: {Path: /one, Method: get}}
        Two:
          Type: HttpApi
          Properties: {Path: "/{p+}", Method: POST, RouteSettings: {ThrottlingRateLimit: 1}}
        Else: {Type: Schedule, Properties: {Schedule: rate(1 hour)}}
"""


def read(folder, text, **arguments):
    path = folder / "template.yaml"
    path.write_text(text)
    return sam.read(path, **arguments)


def test_defaults_are_lambdas_own(tmp_path):
    template = read(tmp_path, SMALLEST)
    assert template.function == sam.Function("F", "app.handler", tmp_path, 3.0, 128, {})
    assert (template.routes, template.cors) == (("$default",), None)
    assert (template.throttles, template.page_headers) == ({}, {})


def test_globals_and_intrinsic_functions_are_resolved(tmp_path):
    values = {"AWS::StackName": "mine", "Table.Arn": "arn:of:table"}
    template = read(tmp_path, WHOLE, parameters=values, environment={"G": "given"})
    function = template.function
    assert (function.name, function.timeout, function.memory) == ("mine-test", 9.0, 512)
    assert function.environment == {
        "A": "1",
        "B": "both",
        "C": "a-Table-y",
        "D": "us-east-1 ${kept}",
        "E": "true",
        "F": "arn:of:table",
        "G": "given",
    }
    assert template.routes == ("GET /one", "POST /{p+}")
    assert template.cors == {"AllowOrigins": ["https://*"]}
    assert template.throttles == {"GET /one": (5.0, 6), "POST /{p+}": (1.0, 6)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("[]", "it has no Resources"),
        ("Resources: {}", "has the functions (none); name one"),
        (SMALLEST + "  G: {Type: AWS::Serverless::Function}", "has the functions F, G; name one"),
        (SMALLEST.replace("HttpApi", "Api"), "F in .* has no event of the type HttpApi"),
        (SMALLEST + "      Runtime: nodejs22.x", "needs the runtime nodejs22.x; only Python"),
        (SMALLEST + "      CodeUri: s3://bucket/key", "the code of F is not in a folder"),
        (SMALLEST + "      Timeout: !Ref Nothing", "refers to Nothing, which it does not have"),
        (SMALLEST + "      Timeout: !GetAtt F.Arn", "needs F.Arn, which only an account knows"),
        (SMALLEST + "      Timeout: !ImportValue x", "uses Fn::ImportValue, which is not known"),
        (SMALLEST + "      Timeout: soon", "could not convert|is not as SAM describes"),
        (SMALLEST.replace("Handler: app.handler", "Tags: {}"), "is not as SAM describes"),
    ],
    ids=range(12),
)
def test_what_is_no_such_template_is_refused_in_one_sentence(tmp_path, text, words):
    with pytest.raises(CloudError, match=words.replace("(none)", r"\(none\)")) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)
