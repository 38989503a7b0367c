"""Command line: `python -m local_cloud COMMAND`; `--help` lists the commands."""

import argparse
import contextlib
import json
import shlex
import signal
import sys
import threading

from local_cloud import DEFAULT_REGION
from local_cloud.errors import CloudError
from local_cloud.instance import PREFIX, home_folder, running, start, stop

EPILOG = """examples:
  python -m local_cloud start
  eval "$(python -m local_cloud env)"      # this shell's boto3 and AWS CLI now talk to it
  aws sagemaker list-training-jobs
  python -m local_cloud logs my-job        # what it prints, until it ends
  python -m local_cloud gateway --template template.yaml --site folder    # a page and its API
  python -m local_cloud stop               # ends every job and endpoint; the next start knows them
  python -m local_cloud reset              # ends everything and forgets it, S3 objects included

The files are in $LOCAL_CLOUD_HOME, or in .local_cloud beside the package.
"""


def main():
    args = get_args_parser().parse_args()
    try:
        return args.run(args)
    except CloudError as error:
        print(f"{PREFIX}{error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):  # Of one who followed a log and has seen enough.
        sys.stderr.close()  # Python would complain about the pipe once more at its end.
        return 130


def get_args_parser():
    parser = argparse.ArgumentParser(
        prog="python -m local_cloud",
        description="The SageMaker, S3, IAM, STS and Logs APIs on this machine, for real.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    command = commands.add_parser("start", help="start the server, unless it runs already")
    command.add_argument(
        "--port", type=port_number, default=0, help="port on 127.0.0.1 (default: any free)"
    )
    command.add_argument("--region", default=DEFAULT_REGION, help="default: %(default)s")
    command.set_defaults(run=start_command)

    command = commands.add_parser("stop", help="end the server and everything it started")
    command.set_defaults(run=stop_command)

    command = commands.add_parser("reset", help="stop, and remove all jobs, models, objects, logs")
    command.set_defaults(run=reset_command)

    command = commands.add_parser("status", help="say whether it runs, and list jobs and endpoints")
    command.set_defaults(run=status_command)

    command = commands.add_parser("logs", help="print and follow what a job or endpoint writes")
    command.add_argument("name", help="of the job or endpoint, as `status` lists it")
    command.add_argument("--no-follow", action="store_true", help="do not wait for more")
    command.set_defaults(run=logs_command)

    command = commands.add_parser("open", help="print the folder that a job or endpoint runs in")
    command.add_argument("name", help="of the job or endpoint, as `status` lists it")
    command.set_defaults(run=open_command)

    command = commands.add_parser("env", help="print the variables that point AWS clients at it")
    command.add_argument("--format", choices=("shell", "json"), default="shell")
    command.set_defaults(run=env_command)

    command = commands.add_parser("interrupt", help="take the instances of a spot job away")
    command.add_argument("job", help="name of a managed spot training job that runs")
    command.set_defaults(run=interrupt_command)

    command = commands.add_parser("gateway", help="serve a page and the API of a SAM template")
    command.add_argument("--template", required=True, help="the file")
    command.add_argument("--function", help="its logical name, where the template has several")
    pairs = {"type": pair, "action": "append", "default": [], "metavar": "NAME=VALUE"}
    command.add_argument(
        "--parameter",
        **pairs,
        help="value of a parameter; {page_url} and {api_url} in it stand for the addresses",
    )
    command.add_argument("--env", **pairs, help="variable of the function; wins over the template")
    command.add_argument("--code", help="folder of the function's package, in place of CodeUri")
    command.add_argument("--site", help="folder with the files of the page")
    for name, what in (("--port", "page"), ("--api-port", "API")):
        command.add_argument(
            name, type=port_number, default=0, help=f"port of the {what} (default: any free)"
        )
    command.set_defaults(run=gateway_command)

    command = commands.add_parser("serve")  # Without help: it is what `start` runs.
    command.add_argument("--port", type=int, required=True)
    command.add_argument("--region", required=True)
    command.add_argument("--work-folder", required=True)
    command.set_defaults(run=serve_command)
    return parser


def pair(text):
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ValueError
    return name, value


def port_number(text):
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError
    return number


def start_command(args):
    instance, started = start(home_folder(), args.port, args.region)
    word = "started" if started else "already running"
    print(f"local_cloud {word} at {instance.url} (process {instance.pid}).")


def stop_command(args):
    print("local_cloud stopped." if stop(home_folder()) else "local_cloud was not running.")


def reset_command(args):
    stop(home_folder(), forget=True)
    print("local_cloud stopped; it has forgotten everything.")


def logs_command(args):
    from local_cloud.status import log_lines

    for line in log_lines(running_instance(), args.name, follow=not args.no_follow):
        print(line, flush=True)


def open_command(args):
    from local_cloud.status import folder_of

    print(folder_of(running_instance(), args.name))


def env_command(args):
    variables = running_instance().environment()
    if args.format == "json":
        print(json.dumps(variables))
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def status_command(args):
    instance = running(home_folder())
    if instance is None:
        print("local_cloud is not running.")
        return 3  # As `systemctl status` of a service that is not running.
    from local_cloud.status import rows

    print(f"local_cloud runs at {instance.url} (process {instance.pid}).")
    for row in rows(instance):
        print("  ".join(row))
    return 0


def interrupt_command(args):
    from local_cloud.interruption import interrupt

    interrupt(running_instance(), args.job)
    print(f"{args.job} is interrupted; it starts again from its checkpoints.")


def gateway_command(args):
    from local_cloud.gateway import gateway

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends as Ctrl-C does.
    running = gateway(
        args.template,
        function=args.function,
        parameters=dict(args.parameter),
        environment=dict(args.env),
        code=args.code,
        site=args.site,
        port=args.port,
        api_port=args.api_port,
    )
    with running, contextlib.suppress(KeyboardInterrupt):
        print(f"page: {running.page_url}\nAPI: {running.api_url}\nCtrl-C ends both.", flush=True)
        threading.Event().wait()


def serve_command(args):
    # Imported here: moto takes two seconds to import, and only the server needs it.
    from local_cloud.server import serve

    serve(args.port, args.region, args.work_folder)


def running_instance():
    instance = running(home_folder())
    if instance is None:
        raise CloudError("not running; `python -m local_cloud start` starts it.")
    return instance


if __name__ == "__main__":
    sys.exit(main())
