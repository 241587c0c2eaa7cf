"""Real guests: who they are, what runs in them, what goes in and out."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import time
from pathlib import Path

import pytest

from foundation.errors import HubError, Refused
from orchestrator.image.initrd import CHANNELS
from tests.orchestrator.vm.qemus import running, shell, spec

pytestmark = [pytest.mark.vm, pytest.mark.real, pytest.mark.slow]


async def test_a_guest_is_who_its_spec_says(tmp_path: Path) -> None:
    async with running(spec(tmp_path, 7)) as machine:
        await machine.ready()
        assert await shell(machine, "hostname") == "web-7\n"
        assert "52:54:00:00:00:11" in await shell(machine, "cat /sys/class/net/eth0/address")
        assert "inet 10.77.0.17/24 " in await shell(machine, "ip addr show eth0")
        assert "default via 10.77.0.1 dev eth0" in await shell(machine, "ip route")
        assert await shell(machine, "cat /etc/resolv.conf") == "nameserver 10.77.0.3\n"
        own = "127.0.0.1 localhost\n10.77.0.17 web-7\n"
        assert await shell(machine, "cat /etc/hosts") == own
        await machine.introduce((("web-2", "10.77.0.12"),))
        assert await shell(machine, "cat /etc/hosts") == f"{own}10.77.0.12 web-2\n"
        await machine.introduce((("web-9", "10.77.0.12"),))
        assert await shell(machine, "cat /etc/hosts") == f"{own}10.77.0.12 web-9\n"
        assert await shell(machine, "ls /etc/hosts.new || true") == ""
        now_s = time.clock_gettime(time.CLOCK_REALTIME)
        assert abs(int(await shell(machine, "date +%s")) - now_s) < 20
        assert await shell(machine, "ls /data; pwd; echo $HOME") == "/root\n/root\n"


async def test_a_command_gets_exactly_what_it_is_given_and_says_exactly_what_it_says(
    tmp_path: Path,
) -> None:
    odd = ["it's", "two\nlines", "", "-n", "$HOME `x` \\n", "\udcff"]
    async with running(spec(tmp_path)) as machine:
        done = await machine.execute(["printf", "%s\\0", *odd])
        assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in odd]
        script = 'echo "$A"; pwd; echo oops >&2; exit 3'
        done = await machine.execute(["sh", "-c", script], env={"A": "b\n'c"}, cwd="/tmp")
        assert (done.status, done.stdout, done.stderr) == (3, b"b\n'c\n/tmp\n", b"oops\n")
        every = bytes(range(256)) * 1000
        done = await machine.execute(["cat"], stdin=every)
        assert (done.status, done.stdout) == (0, every)
        done = await machine.execute(["sh", "-c", "cat >&2"], stdin=every)
        assert (done.stdout, done.stderr) == (b"", every)
        assert (await machine.execute(["cat"])).stdout == b"", "there is no input"
        assert (await machine.execute(["nope"])).status == 127
        assert (await machine.execute(["sh", "-c", "kill -9 $$"])).status == 128 + 9
        assert (await machine.execute(["true"], cwd="/nope")).status == 126


async def test_input_that_a_command_leaves_is_nothing_to_the_next(tmp_path: Path) -> None:
    poison = b"exit\necho poison\n" * 50_000
    async with running(spec(tmp_path)) as machine:
        for _ in range(CHANNELS):
            assert (await machine.execute(["true"], stdin=poison)).status == 0
            assert (await machine.execute(["head", "-c", "4"], stdin=poison)).stdout == b"exit"
        for _ in range(CHANNELS):
            assert (await machine.execute(["echo", "fine"])).stdout == b"fine\n"


async def test_what_runs_on_behind_a_command_is_not_in_the_output_of_the_next(
    tmp_path: Path,
) -> None:
    script = "mkfifo /tmp/go; (read -r x </tmp/go; echo late; echo done >/tmp/said) & echo soon"
    async with running(spec(tmp_path)) as machine:
        assert await shell(machine, script) == "soon\n"
        await shell(machine, "echo >/tmp/go; until [ -e /tmp/said ]; do usleep 1000; done")
        for _ in range(2 * CHANNELS):
            assert await shell(machine, "echo mine") == "mine\n"


async def test_a_cancelled_command_is_killed_and_its_channel_is_free_again(
    tmp_path: Path,
) -> None:
    async with running(spec(tmp_path)) as machine:
        for number in range(2 * CHANNELS):
            started = asyncio.Event()
            script = "echo on; sleep 1000 & sleep 1000"
            task = asyncio.ensure_future(
                machine.execute(
                    ["sh", "-c", script],
                    stdin=b"x" * 200_000 * (number % 2),
                    output=lambda _which, _data, started=started: started.set(),  # type: ignore[misc]
                )
            )
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(30):
            await asyncio.gather(*(machine.execute(["true"]) for _ in range(CHANNELS)))
        assert "sleep 1000" not in await shell(machine, "ps | grep -v grep")


async def test_commands_run_side_by_side_and_wait_when_there_are_too_many(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        await shell(machine, "mkfifo /tmp/gate")
        meeting = [
            asyncio.ensure_future(machine.execute(["sh", "-c", script]))
            for script in ("read -r x </tmp/gate; echo $x", "echo met >/tmp/gate; echo told")
        ]
        async with asyncio.timeout(30):
            assert [done.stdout for done in await asyncio.gather(*meeting)] == [b"met\n", b"told\n"]
        many = [machine.execute(["echo", str(number)]) for number in range(12)]
        said = [int(done.stdout) for done in await asyncio.gather(*many)]
        assert said == list(range(12))


async def test_a_copy_does_not_wait_for_the_commands_that_run(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        assert not machine.is_busy
        busy = [
            asyncio.ensure_future(machine.execute(["sleep", "1000"])) for _ in range(2 * CHANNELS)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*(machine.get("/etc/passwd") for _ in range(3)))
        assert not any(command.done() for command in busy)
        assert machine.is_busy
        for command in busy:
            command.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def test_output_is_told_as_it_comes(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        heard: dict[int, bytes] = {1: b"", 2: b""}
        both = asyncio.Event()

        def hear(which: int, data: bytes) -> None:
            heard[which] += data
            if heard == {1: b"out\n", 2: b"err\n"}:
                both.set()

        script = "mkfifo /tmp/go; echo out; echo err >&2; read -r x </tmp/go"
        task = asyncio.ensure_future(machine.execute(["sh", "-c", script], output=hear))
        async with asyncio.timeout(30):
            await both.wait()  # while the command still runs
        assert not task.done()
        await shell(machine, "echo >/tmp/go")
        done = await task
        assert (done.status, done.stdout, done.stderr) == (0, b"", b"")

        def refuse(_which: int, _data: bytes) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await machine.execute(["yes"], output=refuse)


async def test_a_tree_goes_in_and_comes_out_as_it_was(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        entry = tarfile.TarInfo("tool")
        entry.size, entry.mode, entry.uid = 300_000, 0o751, 1234
        content = os.urandom(300_000)
        tar.addfile(entry, io.BytesIO(content))
    async with running(spec(tmp_path)) as machine:
        await machine.put(raw.getvalue(), "/tmp/new/deep place/tool")
        assert await shell(machine, "stat -c '%a %u' '/tmp/new/deep place/tool'") == "751 0\n"
        back = await machine.get("/tmp/new/deep place")
        with tarfile.open(fileobj=io.BytesIO(back)) as tar:
            assert [member.name for member in tar] == ["./deep place", "./deep place/tool"]
            found = tar.extractfile("./deep place/tool")
            assert found is not None
            assert found.read() == content
        for path, reason in (
            ("/nope", "no-such-path"),
            ("/", "bad-path"),
            ("/tmp/..", "bad-path"),
            ("/dev/null", "no-file"),
        ):
            with pytest.raises(Refused) as refused:
                await machine.get(path)
            assert refused.value.reason == reason
        with pytest.raises(HubError, match=r"could not unpack /proc/x/y: .*'/proc'"):
            await machine.put(raw.getvalue(), "/proc/x/y")
        with pytest.raises(HubError, match="could not unpack") as broken:
            await machine.put(b"no archive at all" * 100, "/tmp")
        assert broken.value.reason == "put"


async def test_an_agent_that_is_killed_is_missed_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    async with running(spec(tmp_path)) as machine:
        with pytest.raises(HubError, match="agent was ended") as ended:
            await machine.execute(["sh", "-c", "kill -9 -1"])
        assert ended.value.reason == "agent"
        with pytest.raises(HubError, match="agent was ended"):
            await machine.execute(["sh", "-c", "kill -9 -1"], stdin=b"echo no\n" * 9)
        async with asyncio.timeout(30):
            in_a_row, reasons = 0, {"agent"}
            while in_a_row < 2 * CHANNELS:
                try:
                    assert await shell(machine, "echo yes") == "yes\n"
                    in_a_row += 1
                except HubError as error:  # it came to an agent on its way out
                    reasons.add(error.reason)
                    in_a_row = 0
        assert reasons == {"agent"}
        await machine._running.caller.make([])
        assert int(await shell(machine, "pidof caller")) > 0


async def test_who_asks_when_all_channels_were_busy_at_the_end_is_told_of_it(
    tmp_path: Path,
) -> None:
    async with running(spec(tmp_path)) as machine:
        asked = [
            asyncio.ensure_future(machine.execute(["sleep", "1000"])) for _ in range(2 * CHANNELS)
        ]
        machine.kill()
        async with asyncio.timeout(30):
            for said in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(said, HubError)
                assert said.reason == "vm-ended"
            with pytest.raises(HubError, match="web-1 ended: it was stopped"):
                await machine.execute(["true"])


async def test_when_memory_runs_out_what_runs_is_killed_and_not_the_agent(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        first = "$(set -- $(pidof agent); echo $1)"
        ours = f"/proc/{first}/oom_score_adj /proc/$(pidof caller)/oom_score_adj"
        assert await shell(machine, f"cat /proc/self/oom_score_adj {ours}") == "0\n-1000\n-1000\n"


async def test_a_vm_that_ends_by_itself_says_so_to_all_who_wait(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        waiting = [asyncio.ensure_future(machine.wait()) for _ in range(2)]
        script = "echo my last words >/dev/console; sleep 0.1; ip link set eth0 down; poweroff -f"
        commands = [["sh", "-c", script], ["sleep", "1000"]]
        for said in await asyncio.gather(
            *(machine.execute(argv) for argv in commands), return_exceptions=True
        ):
            assert isinstance(said, HubError)
            assert said.reason == "vm-ended"
            assert "web-1 ended: the guest shut down" in str(said)
            assert "my last words" in str(said)
        exits = await asyncio.gather(*waiting)
        assert exits[0] is exits[1]
        assert "my last words" in exits[0].reason
        with pytest.raises(HubError, match="my last words"):
            await machine.execute(["true"])
        assert await machine.stop(5) == "agent"


async def test_a_guest_whose_kernel_panics_ends_and_says_why(tmp_path: Path) -> None:
    async with running(spec(tmp_path)) as machine:
        with pytest.raises(HubError, match="Kernel panic - not syncing: sysrq"):
            await machine.execute(["sh", "-c", "echo c >/proc/sysrq-trigger"])
        assert "its kernel panicked" in (await machine.wait()).reason
