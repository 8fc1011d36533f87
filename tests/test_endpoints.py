"""Addresses of the bus, with real sockets."""

import socket as system
import stat

import pytest
import zmq
from atlasd.daemon import endpoints
from atlasd.daemon.endpoints import EndpointError


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


@pytest.fixture
def bind(context):
    """Binds a socket as the bus does; all are closed at the end."""
    sockets = []

    def bound(endpoint):
        socket = context.socket(zmq.XPUB)
        socket.linger = 0
        sockets.append(socket)
        return endpoints.bind(socket, endpoint)

    yield bound
    for socket in sockets:
        socket.close()


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:5556",
        "tcp://localhost:0",
        "tcp://[::1]:*",
        "ipc:///run/a/bus",
        "inproc://a",
    ],
)
def test_loopback_and_ipc_are_private(endpoint):
    endpoints.check(endpoint)
    endpoints.check_private(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5556",
        "tcp://0.0.0.0:5556",
        "tcp://192.168.1.4:5556",
        "tcp://[::]:1",
        "tcp://eth0:1",
    ],
)
def test_an_address_that_others_reach_is_refused_and_the_way_out_is_named(endpoint):
    endpoints.check(endpoint)
    with pytest.raises(
        EndpointError, match=r"not encrypted.*tcp://127\.0\.0\.1:PORT.*set insecure"
    ):
        endpoints.check_private(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "127.0.0.1:5556",
        "http://127.0.0.1:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:70000",
        "tcp://:5556",
        "udp://127.0.0.1:1",
        "ipc://",
        "ipc:///" + "a" * 200,
    ],
)
def test_a_malformed_address_is_refused_with_what_came(endpoint):
    with pytest.raises(EndpointError, match=r"^.*(tcp|ipc)://"):
        endpoints.check(endpoint)


def test_port_zero_finds_a_free_port_and_says_which(bind):
    assert int(bind("tcp://127.0.0.1:0").rpartition(":")[2]) > 0


def test_a_port_in_use_is_named_with_what_to_do(bind):
    endpoint = bind("tcp://127.0.0.1:0")
    with pytest.raises(EndpointError, match=rf"{endpoint} is in use .* stop that one or choose"):
        bind(endpoint)


def test_an_address_of_another_machine_is_refused(bind):
    with pytest.raises(EndpointError, match="no address of this machine"):
        bind("tcp://192.0.2.7:5556")


def test_the_directory_of_an_ipc_socket_is_made_for_its_owner_alone(bind, tmp_path):
    bind(f"ipc://{tmp_path}/run/atlasd/bus")
    assert stat.S_IMODE((tmp_path / "run" / "atlasd").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "atlasd" / "bus").stat().st_mode) == 0o600


def test_a_directory_that_is_there_keeps_its_mode(bind, tmp_path):
    tmp_path.chmod(0o755)
    bind(f"ipc://{tmp_path}/bus")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_an_ipc_socket_in_use_is_not_taken_over(bind, tmp_path):
    endpoint = bind(f"ipc://{tmp_path}/bus")
    with pytest.raises(EndpointError, match="is in use by another program"):
        bind(endpoint)


def test_an_ipc_socket_that_a_dead_program_left_is_replaced(bind, tmp_path):
    with system.socket(system.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "bus"))
    assert bind(f"ipc://{tmp_path}/bus") == f"ipc://{tmp_path}/bus"


def test_a_file_in_the_place_of_an_ipc_socket_is_kept(bind, tmp_path):
    (tmp_path / "bus").write_text("precious")
    with pytest.raises(EndpointError, match="is a file, not a socket"):
        bind(f"ipc://{tmp_path}/bus")
    assert (tmp_path / "bus").read_text() == "precious"


def test_an_ipc_directory_that_cannot_be_made_is_an_error_that_names_the_address(bind, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EndpointError, match=f"ipc://{tmp_path}/file/bus"):
        bind(f"ipc://{tmp_path}/file/bus")
