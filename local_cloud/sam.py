"""Reads what a gateway needs from a SAM template: one function, its HTTP API, the page's headers.

Formats: AWS SAM developer guide, "AWS::Serverless::Function", "HttpApi", "AWS::Serverless::HttpApi"
and "Globals section"; AWS CloudFormation user guide, "Intrinsic function reference" and
"AWS::CloudFront::ResponseHeadersPolicy". Only what is needed is resolved, so that the rest of a
template may ask for what only an account knows.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from local_cloud import ACCOUNT_ID, DEFAULT_REGION
from local_cloud.errors import CloudError

IMPLICIT_API = "ServerlessHttpApi"  # The one that SAM makes for events that name none.
TIMEOUT, MEMORY = 3, 128  # Lambda's defaults: seconds, MB.
ABSENT = object()  # AWS::NoValue.
REFERENCE = re.compile(r"\$\{([^}]*)\}")
SECURITY_HEADERS = {
    "ContentSecurityPolicy": ("content-security-policy", "ContentSecurityPolicy"),
    "FrameOptions": ("x-frame-options", "FrameOption"),
    "ReferrerPolicy": ("referrer-policy", "ReferrerPolicy"),
}


@dataclass(frozen=True)
class Function:
    """A Lambda function: `timeout` in seconds, `memory` in MB, `code` the folder of its package."""

    name: str
    handler: str
    code: Path
    timeout: float
    memory: int
    environment: dict


@dataclass(frozen=True)
class Template:
    """What a template says of one function and of what is in front of it.

    Attributes:
        routes: keys of the routes that lead to the function, such as `POST /items/{id}`.
        cors: members of the API's `CorsConfiguration`; None without one.
        throttles: of each route with limits, requests a second and the largest burst.
        page_headers: names and values that the page's distribution adds to every answer.
    """

    function: Function
    routes: tuple
    cors: dict | None
    throttles: dict
    page_headers: dict


class Loader(yaml.SafeLoader):
    """Reads the short forms of intrinsic functions, `!Sub` for `Fn::Sub`, as the long ones."""


def construct(loader, name, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


Loader.add_multi_constructor("!", construct)


def read(path, function=None, parameters=None, environment=None, code=None):
    """The `Template` in the file `path`.

    Args:
        function: logical name of the function; None where the template has one only.
        parameters: values of the template's parameters; also of `AWS::StackName` and its like, and
            what `Ref` and `Fn::GetAtt` make of a resource, by `Name` and `Name.Attribute`.
        environment: variables of the function; these win over the template's.
        code: folder of the function's package in place of its `CodeUri`.

    Raises:
        CloudError: the file is no such template, or needs a value that is not given.
    """
    path = Path(path)
    document = load(path)
    try:
        return read_document(document, path, function, parameters or {}, environment or {}, code)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CloudError(f"{path} is not as SAM describes templates: {error!r}.") from error


def read_document(document, path, function, parameters, environment, code):
    resolve = Resolver(document, parameters)
    functions = resolve.resources("AWS::Serverless::Function")
    name = function or next(iter(functions), None)
    if name not in functions or (function is None and len(functions) > 1):
        raise CloudError(f"{path} has the functions {', '.join(functions) or '(none)'}; name one.")
    defaults = document.get("Globals") or {}
    properties = merged(defaults.get("Function", {}), functions[name])
    events = [
        event.get("Properties") or {}
        for event in properties.get("Events", {}).values()
        if event["Type"] == "HttpApi"
    ]
    if not events:
        raise CloudError(f"{name} in {path} has no event of the type HttpApi.")
    api = api_of(events[0], resolve, defaults)
    return Template(
        function=read_function(name, properties, resolve, environment, code, path.parent),
        routes=tuple(route_key(event, resolve) for event in events),
        cors=read_cors(api, resolve),
        throttles=read_throttles(events, api, resolve),
        page_headers=read_page_headers(resolve),
    )


def load(path):
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise CloudError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CloudError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(document, dict) or not isinstance(document.get("Resources"), dict):
        raise CloudError(f"{path} is no template: it has no Resources.")
    return document


def merged(defaults, properties):
    """Properties over `Globals`: maps are merged, lists and single values replaced or joined."""
    result = dict(defaults)
    for name, value in properties.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            value = merged(result[name], value)
        result[name] = value
    return result


def read_function(name, properties, resolve, environment, code, folder):
    runtime = resolve(properties.get("Runtime", "python3"))
    if not str(runtime).startswith("python"):
        raise CloudError(f"{name} needs the runtime {runtime}; only Python runs here.")
    code = folder / (code or resolve(properties.get("CodeUri", ".")))
    if not code.is_dir():
        raise CloudError(
            f"the code of {name} is not in a folder {code}; build it, or name another."
        )
    declared = (properties.get("Environment") or {}).get("Variables") or {}
    # What is given is not looked up: it may have no value outside an account.
    own = {key: resolve(value) for key, value in declared.items() if key not in environment}
    return Function(
        name=str(resolve(properties.get("FunctionName", name))),
        handler=str(resolve(properties["Handler"])),
        code=code.resolve(),
        timeout=float(resolve(properties.get("Timeout", TIMEOUT))),
        memory=int(resolve(properties.get("MemorySize", MEMORY))),
        environment={key: as_text(value) for key, value in {**own, **environment}.items()},
    )


def as_text(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def route_key(event, resolve):
    if "Path" not in event:
        return "$default"
    return f"{str(resolve(event.get('Method', 'ANY'))).upper()} {resolve(event['Path'])}"


def api_of(event, resolve, defaults):
    """Properties of the API that an event belongs to."""
    reference = event.get("ApiId")
    name = reference.get("Ref") if isinstance(reference, dict) else IMPLICIT_API
    return merged(
        defaults.get("HttpApi", {}), resolve.resources("AWS::Serverless::HttpApi").get(name, {})
    )


def read_cors(api, resolve):
    cors = resolve(api.get("CorsConfiguration"))
    return {"AllowOrigins": ["*"]} if cors is True else cors or None


def read_throttles(events, api, resolve):
    """Limits of each route: its own, else those that the API has for all."""
    default = resolve(api.get("DefaultRouteSettings")) or {}
    of_routes = resolve(api.get("RouteSettings")) or {}
    throttles = {}
    for event in events:
        key = route_key(event, resolve)
        settings = {**default, **(of_routes.get(key) or {})}
        settings.update(resolve(event.get("RouteSettings")) or {})
        rate, burst = (settings.get(f"Throttling{kind}Limit") for kind in ("Rate", "Burst"))
        if rate is not None and burst is not None:
            throttles[key] = (float(rate), int(burst))
    return throttles


def read_page_headers(resolve):
    """The headers of the policy that the distribution's default behaviour names."""
    headers = {}
    for distribution in resolve.resources("AWS::CloudFront::Distribution").values():
        behaviour = distribution["DistributionConfig"].get("DefaultCacheBehavior", {})
        policy = behaviour.get("ResponseHeadersPolicyId")
        name = policy.get("Ref") if isinstance(policy, dict) else None
        if name:
            config = resolve(resolve.document["Resources"][name]["Properties"])
            headers.update(policy_headers(config["ResponseHeadersPolicyConfig"]))
    return headers


def policy_headers(config):
    """The headers that a `ResponseHeadersPolicyConfig` adds."""
    security = config.get("SecurityHeadersConfig", {})
    headers = {
        header: str(security[kind][member])
        for kind, (header, member) in SECURITY_HEADERS.items()
        if kind in security
    }
    if "ContentTypeOptions" in security:
        headers["x-content-type-options"] = "nosniff"
    if "StrictTransportSecurity" in security:
        transport = security["StrictTransportSecurity"]
        words = [f"max-age={transport['AccessControlMaxAgeSec']}"]
        words += ["includeSubDomains"] if transport.get("IncludeSubdomains") else []
        words += ["preload"] if transport.get("Preload") else []
        headers["strict-transport-security"] = "; ".join(words)
    if "XSSProtection" in security:
        protection = security["XSSProtection"]
        mode = "; mode=block" if protection.get("ModeBlock") else ""
        headers["x-xss-protection"] = f"{int(protection['Protection'])}{mode}"
    for item in config.get("CustomHeadersConfig", {}).get("Items", []):
        headers[item["Header"].lower()] = str(item["Value"])
    return headers


class Resolver:
    """Replaces intrinsic functions by their values; calling it does so."""

    def __init__(self, document, values):
        self.document, self.values = document, values

    def resources(self, kind):
        """Properties of all resources of one type, by logical name."""
        return {
            name: resource.get("Properties") or {}
            for name, resource in self.document["Resources"].items()
            if resource.get("Type") == kind and self.condition(resource.get("Condition"))
        }

    def __call__(self, node):
        if isinstance(node, list):
            return [value for value in map(self, node) if value is not ABSENT]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((name, argument),) = node.items()
            if name == "Ref" or name.startswith("Fn::"):
                return self.call(name, argument)
        values = {key: self(value) for key, value in node.items()}
        return {key: value for key, value in values.items() if value is not ABSENT}

    def call(self, name, argument):
        if name == "Ref":
            return self.ref(argument)
        if name == "Fn::Sub":
            text, own = argument if isinstance(argument, list) else (argument, {})
            return REFERENCE.sub(lambda found: self.substitute(found[1], own), text)
        if name == "Fn::GetAtt":
            return self.attribute(".".join(map(str, argument)))
        if name == "Fn::Join":
            return argument[0].join(map(str, self(argument[1])))
        if name == "Fn::If":
            return self(argument[1] if self.condition(argument[0]) else argument[2])
        if name == "Fn::Select":
            return self(argument[1])[int(argument[0])]
        if name == "Fn::Split":
            return self(argument[1]).split(argument[0])
        if name == "Fn::FindInMap":
            found = self.document["Mappings"]
            for key in argument:
                found = found[self(key)]
            return found
        raise CloudError(f"the template uses {name}, which is not known here.")

    def substitute(self, name, own):
        name = name.strip()
        if name.startswith("!"):  # Stands for "${...}" itself.
            return f"${{{name[1:]}}}"
        if name in own:
            return str(self(own[name]))
        return str(self.attribute(name) if "." in name else self.ref(name))

    def ref(self, name):
        parameters = self.document.get("Parameters") or {}
        if name in self.values:
            return self.values[name]
        if name in parameters:
            if "Default" not in parameters[name]:
                raise CloudError(f"the template's parameter {name} has no default; give its value.")
            return parameters[name]["Default"]
        known = {
            "AWS::Region": DEFAULT_REGION,
            "AWS::AccountId": ACCOUNT_ID,
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::StackName": "local",
            "AWS::NoValue": ABSENT,
        }
        if name in known:
            return known[name]
        if name in self.document["Resources"]:
            return name
        raise CloudError(f"the template refers to {name}, which it does not have.")

    def attribute(self, name):
        if name in self.values:
            return self.values[name]
        raise CloudError(f"the template needs {name}, which only an account knows; give its value.")

    def condition(self, node):
        if node is None:
            return True
        if isinstance(node, str):
            return self.condition(self.document["Conditions"][node])
        ((name, argument),) = node.items()
        if name == "Condition":
            return self.condition(argument)
        if name == "Fn::Equals":
            first, second = map(self, argument)
            return as_text(first) == as_text(second)
        results = [self.condition(each) for each in argument]
        return {"Fn::And": all, "Fn::Or": any, "Fn::Not": lambda r: not r[0]}[name](results)
