"""The command line ``bones vm``: what the words mean is :mod:`orchestrator.vm_verbs`'s."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from hub.commandline import DryRun, Json, Root, new_app, seconds_option
from orchestrator import vm_verbs
from orchestrator.entry import VM_ALIASES


class _Aliased(TyperGroup):
    """Verbs that have other names too, which no help shows."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, VM_ALIASES.get(cmd_name, cmd_name))


class _WithCommand(TyperCommand):
    """A verb whose last argument is all that follows NAME, with the ``--`` that is in it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        rest: list[str] = super().parse_args(ctx, args[:at])
        words = [*(ctx.params["words"] or ()), *args[at:]]
        if words[:1] in (["--help"], ["-h"]):
            super().parse_args(ctx, words[:1])
        ctx.params["words"] = words
        return rest


app = new_app(
    "vm",
    "Small VMs on a network of their own, for what must not run on this machine."
    "\n\nA VM is called NAME or NAME-NUMBER; those of one NAME are a cluster and see each other."
    "\n\nExample:  bones vm up web -n 2 && bones vm exec web-1 -- ping -c 1 web-2",
)
app.info.cls = _Aliased

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME...", show_default=False)]
Words = Annotated[list[str] | None, typer.Argument(metavar="-- CMD...", show_default=False)]
One = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Everything = Annotated[bool, typer.Option("--all", help="All of this workspace.")]


@app.command()
def up(
    names: Names = None,
    *,
    count: Annotated[int, typer.Option("-n", metavar="N", help="NAME-1 to NAME-N.")] = 1,
    cpus: Annotated[int | None, typer.Option(metavar="N", help="Of a new VM. [default: 1]")] = None,
    mem: Annotated[
        int | None, typer.Option("--mem", metavar="MB", help="Of a new VM. [default: 128]")
    ] = None,
    disk: Annotated[
        int | None,
        typer.Option("--disk", metavar="MB", help="Of a new VM, at /data. [default: 1024]"),
    ] = None,
    no_egress: Annotated[
        bool,
        typer.Option(
            "--no-egress",
            help="Of a new cluster: no internet and no names from outside; each other and the hub "
            "only.",
        ),
    ] = False,
    root: Root = None,
    as_json: Json = False,
    timeout: Annotated[
        float | None,
        seconds_option(
            "Give up a boot after this long; what this machine needs once does not count. "
            "[default: 120]"
        ),
    ] = None,
) -> NoReturn:
    """Have VMs run, and print their addresses.

    What runs already is left alone; a VM that exists keeps its CPUs, memory and
    disk, a cluster its way out. The name of a cluster means the VMs it has.
    QEMU and a kernel are fetched the first time, if they are not here.

    Example:  bones vm up web -n 3 --mem 256
    """
    sys.exit(
        vm_verbs.up(
            names or [],
            count=count,
            cpus=cpus,
            memory_mb=mem,
            disk_mb=disk,
            no_egress=no_egress,
            root=root,
            timeout_s=timeout,
            as_json=as_json,
        )
    )


@app.command()
def down(
    names: Names = None,
    *,
    everything: Everything = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="End a holder that does not answer, and all its VMs with it."),
    ] = False,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """Stop VMs, or all of a cluster; their disks stay.

    A VM is asked to stop, and so unmounts its disk; one that does not is ended.
    With --force a holder that is hung is killed: to its VMs that is a power cut.

    Example:  bones vm down web-1
    """
    sys.exit(
        vm_verbs.down(names or [], everything=everything, force=force, root=root, as_json=as_json)
    )


@app.command()
def ls(
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names only.")] = False,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """List the VMs of this workspace with state and address.

    Example:  bones vm ls
    """
    sys.exit(vm_verbs.ls(quiet=quiet, root=root, as_json=as_json))


@app.command(name="exec", cls=_WithCommand, context_settings={"allow_interspersed_args": False})
def execute(
    name: One,
    words: Words = None,
    *,
    stdin: Annotated[
        bool, typer.Option("--stdin", "-i", help="Give it our input, read to its end first.")
    ] = False,
    cwd: Annotated[str, typer.Option("--cwd", metavar="DIR", help="Where in the guest.")] = "",
    root: Root = None,
    as_json: Json = False,
    timeout: Annotated[
        float | None, seconds_option("Kill it after this long. [exit code: 75]")
    ] = None,
) -> NoReturn:
    """Run a command in a VM; output and exit code are the command's.

    A VM runs 8 commands at once; one more says that it waits. Exit code 3: the VM is not up.

    Example:  bones vm exec web-1 -- uname -a
    """
    sys.exit(
        vm_verbs.execute(
            name, words or (), stdin=stdin, cwd=cwd, root=root, timeout_s=timeout, as_json=as_json
        )
    )


@app.command(cls=_WithCommand, context_settings={"allow_interspersed_args": False})
def ssh(
    name: One,
    words: Words = None,
    *,
    root: Root = None,
) -> NoReturn:
    """Have a shell in a VM, on this terminal; or run CMD on it.

    No SSH is needed in the guest. `~.` at the beginning of a line leaves. Without a
    terminal, the shell reads our input.

    Example:  bones vm ssh web-1
    """
    sys.exit(vm_verbs.ssh(name, words or (), root=root))


@app.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", show_default=False)],
    *,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """Copy a file or a directory; one side is NAME:PATH.

    The copy is called TARGET, or goes into TARGET under its own name if that is
    a directory or ends in `/`. A file replaces a file; a directory that is there
    gets what is in the other. Permissions and links are kept, owners are not;
    a link that leads out of what is copied comes out of no VM.

    Example:  bones vm cp results web-1:/data/
    """
    sys.exit(vm_verbs.cp(source, target, root=root, as_json=as_json))


@app.command()
def logs(
    name: One,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """Print what a VM's console has said since its last start.

    Example:  bones vm logs web-1 -f
    """
    sys.exit(vm_verbs.logs(name, follow=follow, root=root, as_json=as_json))


@app.command()
def forward(
    name: One,
    port: Annotated[str, typer.Argument(metavar="[HOST_PORT:]GUEST_PORT", show_default=False)] = "",
    *,
    end: Annotated[int | None, typer.Option("--end", metavar="HOST_PORT", help="End one.")] = None,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """Have a port of 127.0.0.1 lead into a VM, and print it; without one, list them.

    It does until the VM ends. Without HOST_PORT any that is free is taken;
    the same again gives the same port.

    Example:  bones vm forward web-1 8080:80
    """
    sys.exit(vm_verbs.forward(name, port, end=end, root=root, as_json=as_json))


@app.command()
def rm(
    names: Names = None,
    *,
    everything: Everything = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", "-f", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    root: Root = None,
    as_json: Json = False,
) -> NoReturn:
    """Stop VMs and delete them with their disks.

    Example:  bones vm rm web --dry-run && bones vm rm web --yes
    """
    sys.exit(
        vm_verbs.rm(
            names or [],
            everything=everything,
            yes=yes,
            dry_run=dry_run,
            root=root,
            as_json=as_json,
        )
    )


@app.command()
def prune(*, root: Root = None, as_json: Json = False) -> NoReturn:
    """Remove what killed holders have left.

    Their sockets and pidfiles, and what a killed `rm` has left half removed.

    Example:  bones vm prune
    """
    sys.exit(vm_verbs.prune(root=root, as_json=as_json))


@app.command()
def doctor(*, root: Root = None, as_json: Json = False) -> NoReturn:
    """Say what VMs lack on this machine, and what is wrong with those here.

    Example:  bones vm doctor
    """
    sys.exit(vm_verbs.doctor(root=root, as_json=as_json))
