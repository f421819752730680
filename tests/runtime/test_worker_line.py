"""The worker's end of the socket: whatever pieces frames come in, they are taken whole and in order."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeferry.runtime.worker_line import WorkerLine
from edgeferry.wire.worker_frames import Ask, Cancel, Request, Stop, make_frame

Said = tuple[Request, bytes]

said = st.one_of(
    st.builds(lambda id_, body: (Ask(id=id_), body), st.integers(1, 99), st.binary(max_size=300)),
    st.builds(lambda id_, size: (Ask(id=id_), bytes(size)), st.integers(1, 99), st.integers(60_000, 200_000)),
    st.builds(lambda id_: (Cancel(id_), b""), st.integers(1, 99)),
)


def receive_all(line: WorkerLine) -> list[Said]:
    found: list[Said] = []
    while not found or not isinstance(found[-1][0], Stop):
        found += [(request, bytes(body)) for request, body in line.receive(wait=True)]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(said, max_size=8), st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_frames_in_any_pieces_are_taken_whole_and_in_order(wanted: list[Said], cuts: list[int]) -> None:
    wanted = [*wanted, (Stop(), b"")]
    stream = b"".join(make_frame(request, len(body)) + body for request, body in wanted)
    ours, theirs = socket.socketpair()

    def send() -> None:
        at = 0
        for cut in cuts:
            theirs.sendall(stream[at : at + cut])
            at += cut
        theirs.sendall(stream[at:])

    with ours, theirs:
        sending = threading.Thread(target=send)
        sending.start()
        assert receive_all(WorkerLine(ours)) == wanted
        sending.join()


def test_all_that_has_come_is_taken_in_one_call() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"".join(make_frame(Ask(id=number)) for number in range(1, 6)) + make_frame(Cancel(3)))
        frames = WorkerLine(ours).receive(wait=True)
    assert [request for request, _ in frames] == [*(Ask(id=number) for number in range(1, 6)), Cancel(3)]


def test_who_does_not_wait_gets_what_is_there_and_keeps_what_is_half() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line, frame = WorkerLine(ours), make_frame(Ask(id=7))
        assert line.receive(wait=False) == []
        theirs.sendall(frame + frame[:5])
        assert line.receive(wait=False) == [(Ask(id=7), bytearray())]
        assert line.receive(wait=False) == []
        theirs.sendall(frame[5:])
        assert line.receive(wait=False) == [(Ask(id=7), bytearray())]


def test_a_parent_that_is_gone_ends_the_process() -> None:
    ours, theirs = socket.socketpair()
    code = (
        "import socket, sys; from edgeferry.runtime.worker_line import WorkerLine;"
        " WorkerLine(socket.socket(fileno=int(sys.argv[1]))).receive(wait=True); sys.exit('received')"
    )
    with ours:
        process = subprocess.Popen([sys.executable, "-c", code, str(ours.fileno())], pass_fds=[ours.fileno()])
        theirs.close()
        assert process.wait(30) == 0
