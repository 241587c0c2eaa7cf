"""QEMU's command line. Pure.

A template's VMs must be built as the template was, device by device, so there is one shape; what
differs between VMs is behind the devices: descriptors, files, the address of the network card.
"""

from __future__ import annotations

from foundation.record import Record
from orchestrator.image.initrd import CHANNELS, TERMINALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from orchestrator.image.images import Image

QMP_FD = 3
NET_FD = 4
CALLER = "caller"
PORTS = (
    CALLER,
    *(f"{end}{number}" for number in range(CHANNELS) for end in "ab"),
    *(f"hvc{number}" for number in range(TERMINALS)),
)
"""Of the guest's serial device, from number 1 on: a channel has two, a terminal is a console."""
FIRST_PORT_FD = 5
STATE_FD = FIRST_PORT_FD + len(PORTS)
"""The state of a template, for one that starts from it."""

_APPEND = (
    "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off nowatchdog tsc=nowatchdog "
    "audit=0 lsm= psi=0 cryptomgr.notests i8042.noaux i8042.noprobe=1 8250.nr_uarts=1 "
    "rcupdate.rcu_expedited=1 random.trust_cpu=on noresume noreplace-smp ipv6.disable_ipv6=1 "
    "initcall_blacklist=trace_eval_init,tracer_init_tracefs,crypto_kdf108_init,slab_sysfs_init,"
    "cubictcp_register"
)
"""What is left out is what costs a start. Nobody misses it here: a cluster's network has no IPv6,
the gateway ends every TCP connection (cubic would have all types of the kernel's be parsed)."""
_TRANSLATIONS_MB = 64
"""What emulation may keep of translated code; the default is up to 1 GiB a VM."""
_NO_DISK_BYTES = 1 << 20


class Shape(Record):
    """What a VM and the template that it starts from have in common."""

    accel: str
    """``kvm`` or ``tcg``."""
    cpus: int
    memory_mb: int
    disk_bytes: int
    """0: none. A template has one as large, of zeros, which its guest does not open: how large a
    disk is a guest is told but once."""
    image: Image


class Memory(Record):
    """The file that is a VM's memory, if there is one."""

    path: str
    shared: bool
    """Whether what the guest writes is written to it: a template's, while it is made."""


class Parts(Record):
    """What one VM has behind its devices."""

    name: str
    mac: str
    console: str
    """The file that its serial port appends to."""
    disk: str
    """A raw image, "" for none."""
    network: bool
    """Whether NET_FD is a datagram socket; else nobody is behind the network card."""
    memory: Memory | None
    incoming: bool
    """Whether it waits to be told by QMP what to start from."""
    confined: bool
    """Whether QEMU may start no program and gain no privilege."""


def arguments(shape: Shape, parts: Parts) -> list[str]:
    """Return the arguments for one VM."""
    machine = f"q35,accel={shape.accel},smm=off,vmport=off,sata=off,smbus=off,usb=off"
    made = ["-name", _value(parts.name), "-nodefaults", "-no-user-config", "-display", "none"]
    made += ["-no-reboot", "-cpu", "host" if shape.accel == "kvm" else "Nehalem"]
    made += ["-smp", str(shape.cpus), "-m", f"{shape.memory_mb}M"]
    if parts.confined:
        made += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
    if parts.memory is not None:
        share = "on" if parts.memory.shared else "off"
        path = _value(parts.memory.path)
        size = f"{shape.memory_mb}M"
        made += ["-object", f"memory-backend-file,id=ram,size={size},mem-path={path},share={share}"]
        machine += ",memory-backend=ram"
    made += ["-machine", machine]
    if shape.accel == "tcg":
        made += ["-accel", f"tcg,tb-size={_TRANSLATIONS_MB}"]
        made[made.index(machine)] = machine.replace(",accel=tcg", "")
    made += ["-kernel", shape.image.kernel, "-initrd", shape.image.initrd, "-append", _APPEND]
    made += ["-chardev", f"socket,id=qmp,fd={QMP_FD}", "-mon", "chardev=qmp,mode=control"]
    made += ["-chardev", f"file,id=console,path={_value(parts.console)},append=on"]
    made += ["-serial", "chardev:console"]
    made += _network(parts) + _disk(shape, parts) + _ports()
    if parts.incoming:
        made += ["-incoming", "defer"]
    return made


def _network(parts: Parts) -> list[str]:
    behind = f"dgram,id=net,local.type=fd,local.str={NET_FD}"
    return [
        *("-netdev", behind if parts.network else "hubport,id=net,hubid=0"),
        *(
            "-device",
            f"virtio-net-pci,netdev=net,mac={parts.mac},guest_announce=off,romfile=,addr=4",
        ),
    ]


def _disk(shape: Shape, parts: Parts) -> list[str]:
    drive = "if=none,id=disk,"
    if parts.disk:
        drive += f"format=raw,cache=writeback,discard=unmap,file={_value(parts.disk)}"
    else:
        size = shape.disk_bytes or _NO_DISK_BYTES
        drive += f"driver=null-co,read-zeroes=on,size={size}"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=disk,addr=5"]


def _ports() -> list[str]:
    made = ["-device", f"virtio-serial-pci,id=serial,max_ports={len(PORTS) + 1},addr=6"]
    for number, port in enumerate(PORTS):
        made += ["-chardev", f"socket,id={port},fd={FIRST_PORT_FD + number}", "-device"]
        device = "virtconsole" if port.startswith("hvc") else "virtserialport"
        made += [f"{device},bus=serial.0,nr={number + 1},id={port},chardev={port}"]
    return made


def _value(text: str) -> str:
    """In QEMU's options a comma is written twice."""
    return text.replace(",", ",,")
