"""Packages: .deb files and resource bundles made in code, unpacked without root or dpkg."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import zstandard
from atlasd.streams.packages import (
    PackageError,
    ResourceBundle,
    Shelf,
    each_entry,
    each_file,
    obtain,
    unpack,
)

FILES = {"./usr/share/thing/a.txt": b"first", "./usr/share/thing/b.bin": bytes(range(256)) * 40}


def make_deb(folder, name="thing", version="1.0-1", *, kind="xz", files=FILES, links=None):
    data = io.BytesIO()
    mode = {"zst": "w", "": "w"}.get(kind, f"w:{kind}")
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for path, target in (links or {}).items():
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed = data.getvalue()
    if kind == "zst":
        packed = zstandard.ZstdCompressor().compress(packed)
    member = f"data.tar.{kind}".rstrip(".")
    deb = folder / f"{name}_{version}_all.deb"
    with deb.open("wb") as file:
        file.write(b"!<arch>\n")
        for inner, content in (("debian-binary", b"2.0\n"), ("control", b"odd"), (member, packed)):
            file.write(f"{inner:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return deb


@pytest.mark.parametrize("kind", ["xz", "gz", "bz2", "zst", ""])
def test_a_deb_of_each_compression_is_unpacked(tmp_path, kind):
    package = unpack(make_deb(tmp_path, kind=kind), ["/usr/share/thing/b.bin"], tmp_path / "out")
    assert package.read("/usr/share/thing/b.bin") == FILES["./usr/share/thing/b.bin"]
    assert (package.name, package.version) == ("thing", "1.0-1")


def test_only_the_wanted_files_are_unpacked(tmp_path):
    package = unpack(make_deb(tmp_path), ["/usr/share/thing/a.txt"], tmp_path / "out")
    assert [p.name for p in package.root.rglob("*") if p.is_file()] == ["a.txt"]


def test_a_symbolic_link_gives_the_file_it_names(tmp_path):
    deb = make_deb(tmp_path, links={"./usr/share/other/link": "../thing/a.txt"})
    package = unpack(deb, ["/usr/share/other/link"], tmp_path / "out")
    assert package.read("/usr/share/other/link") == b"first"


def test_what_is_unpacked_is_not_unpacked_again(tmp_path):
    deb = make_deb(tmp_path)
    unpack(deb, ["/usr/share/thing/a.txt"], tmp_path / "out")
    deb.write_bytes(b"gone bad")
    package = unpack(deb, ["/usr/share/thing/a.txt"], tmp_path / "out")
    assert package.read("/usr/share/thing/a.txt") == b"first"


def test_an_epoch_in_the_version_is_read(tmp_path):
    deb = make_deb(tmp_path, version="2%3a1.1-3")
    assert unpack(deb, [], tmp_path / "out").version == "2:1.1-3"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PackageError, match=r"thing 1\.0-1 lacks 1 .*nothing\.png"):
        unpack(make_deb(tmp_path), ["/usr/nothing.png"], tmp_path / "out")


@pytest.mark.parametrize("kind", ["xz", "gz", "zst"])
def test_a_deb_cut_short_is_refused_and_leaves_no_half_file(tmp_path, kind):
    noise = {"./usr/big": os.urandom(300_000)}
    deb = make_deb(tmp_path, kind=kind, files=noise)
    deb.write_bytes(deb.read_bytes()[:100_000])
    with pytest.raises(PackageError, match="thing_"):
        unpack(deb, ["/usr/big"], tmp_path / "out")
    assert not (tmp_path / "out/thing_1.0-1/usr/big").exists()


def test_a_file_that_is_no_deb_is_refused(tmp_path):
    deb = tmp_path / "thing_1_all.deb"
    deb.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(PackageError, match="does not begin with"):
        unpack(deb, ["/usr/a"], tmp_path / "out")


def test_a_folder_of_debs_is_used(tmp_path):
    make_deb(tmp_path)
    seen = []
    found = obtain(
        {"thing": ["/usr/share/thing/a.txt"]},
        tmp_path,
        cache=tmp_path / "cache",
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert found["thing"].read("/usr/share/thing/a.txt") == b"first"
    assert seen == [("package thing", 0, 1), ("packages", 1, 1)]


def test_a_folder_of_unpacked_trees_is_used(tmp_path):
    file = tmp_path / "thing/usr/share/thing/a.txt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"by hand")
    found = obtain({"thing": ["/usr/share/thing/a.txt"]}, tmp_path, cache=tmp_path / "cache")
    assert found["thing"].read("/usr/share/thing/a.txt") == b"by hand"


def test_a_package_that_is_not_in_the_folder_is_named_with_what_to_do(tmp_path):
    with pytest.raises(PackageError, match="apt-get download thing"):
        obtain({"thing": ["/usr/a"]}, tmp_path, cache=tmp_path / "cache")


def test_two_versions_in_the_folder_are_refused(tmp_path):
    make_deb(tmp_path, version="1.0-1")
    make_deb(tmp_path, version="2.0-1")
    with pytest.raises(PackageError, match="2 versions of thing"):
        obtain({"thing": ["/usr/a"]}, tmp_path, cache=tmp_path / "cache")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PackageError, match="no folder"):
        obtain({}, tmp_path / "nowhere", cache=tmp_path / "cache")


SOUNDS = {"./usr/a.OGG": b"one", "./usr/sub/b.wav": b"two", "./usr/c.txt": b"three"}


def test_a_package_is_walked_without_unpacking_it(tmp_path):
    deb = make_deb(tmp_path, files=SOUNDS, links={"./usr/link.wav": "sub/b.wav"})
    walked = dict(each_file(deb, (".ogg", ".wav")))
    assert walked == {"/usr/a.OGG": b"one", "/usr/sub/b.wav": b"two"}
    assert list(tmp_path.iterdir()) == [deb]


def test_an_unpacked_tree_is_walked_like_its_package(tmp_path):
    for path, content in SOUNDS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "usr/link.wav").symlink_to("sub/b.wav")
    walked = list(each_file(tmp_path, (".ogg", ".wav")))
    assert walked == [("/usr/a.OGG", b"one"), ("/usr/sub/b.wav", b"two")]


def test_a_deb_cut_short_is_refused_while_it_is_walked(tmp_path):
    deb = make_deb(tmp_path, files={"./usr/big.wav": os.urandom(300_000)})
    deb.write_bytes(deb.read_bytes()[:100_000])
    with pytest.raises(PackageError, match="thing_"):
        list(each_file(deb, (".wav",)))


def test_a_shelf_finds_a_deb_or_a_tree(tmp_path):
    deb = make_deb(tmp_path)
    (tmp_path / "other/usr").mkdir(parents=True)
    shelf = Shelf(tmp_path)
    assert (shelf.find("thing"), shelf.find("other")) == (deb, tmp_path / "other")
    with pytest.raises(PackageError, match="apt-get download gone"):
        shelf.find("gone")


@pytest.mark.parametrize("path", ["/usr/a.zip", "/usr/a.pk3", "/usr/a.WZ"])
def test_the_entries_of_an_archive_are_walked(path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sfx/b.Wav", b"two" * 99)
        archive.writestr("a.txt", b"one")
    walked = list(each_entry(file.getvalue(), path, (".wav",)))
    assert walked == [(f"{path}!sfx/b.Wav", b"two" * 99)]
    with pytest.raises(PackageError, match=f"{path} is a damaged"):
        list(each_entry(file.getvalue()[:-30], path, (".wav",)))


def test_the_entries_of_a_resource_bundle_are_walked():
    data = make_bundle([("a.wav", 0, b"one"), ("b.png", 0, b"two")])
    assert list(each_entry(data, "/usr/a.rcc", (".wav",))) == [("/usr/a.rcc!pics/a.wav", b"one")]


def put_apt_on_path(monkeypatch, tmp_path, script):
    programs = tmp_path / "bin"
    programs.mkdir()
    apt = programs / "apt-get"
    apt.write_text("#!/bin/sh\n" + script)
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")


def test_apt_runs_with_state_of_its_own_and_downloads_once(monkeypatch, tmp_path):
    deb = make_deb(tmp_path)
    log = tmp_path / "log"
    put_apt_on_path(
        monkeypatch,
        tmp_path,
        f'echo "$@" >> {log}\n'
        f'case "$*" in *--print-uris*) echo "\'http://x/{deb.name}\' {deb.name} 1 SHA256:0";;\n'
        f'*"download thing"*) cp {deb} .;; esac\n',
    )
    for _ in range(2):
        found = obtain({"thing": ["/usr/share/thing/a.txt"]}, cache=tmp_path / "cache")
        assert found["thing"].read("/usr/share/thing/a.txt") == b"first"
    calls = log.read_text().splitlines()
    assert (
        sum(call.endswith("-q download thing") or " download thing" in call for call in calls) == 3
    )
    assert sum("--print-uris" not in call and "download thing" in call for call in calls) == 1
    assert all(f"Dir::State::lists={tmp_path}/cache/apt/lists" in call for call in calls)


def test_apt_that_fails_is_reported_with_its_words(monkeypatch, tmp_path):
    put_apt_on_path(monkeypatch, tmp_path, "echo 'E: no network here' >&2; exit 100\n")
    with pytest.raises(PackageError, match="no network here"):
        obtain({"thing": ["/usr/a"]}, cache=tmp_path / "cache")


def test_a_machine_without_apt_is_told_about_packages(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="--packages"):
        obtain({"thing": ["/usr/a"]}, cache=tmp_path / "cache")


def make_bundle(entries, version=3):
    """A bundle with the entries in one folder ``pics``; each entry is (name, flags, bytes)."""
    names, payload = bytearray(), bytearray()

    def name_at(name):
        at = len(names)
        names.extend(struct.pack(">HI", len(name), 0) + name.encode("utf-16-be"))
        return at

    stamp = b"" if version == 1 else bytes(8)
    tree = bytearray(struct.pack(">IHII", 0, 2, 1, 1) + stamp)
    tree += struct.pack(">IHII", name_at("pics"), 2, len(entries), 2) + stamp
    for name, flags, content in entries:
        tree += struct.pack(">IHHHI", name_at(name), flags, 0, 0, len(payload)) + stamp
        payload += struct.pack(">I", len(content)) + content
    start = 20 + (4 if version == 3 else 0)
    header = b"qres" + struct.pack(
        ">4I", version, start, start + len(tree), start + len(tree) + len(payload)
    )
    return header + bytes(start - 20) + bytes(tree + payload + names)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_bundle_of_each_version_gives_its_entries(version):
    plain, packed = b"plain bytes", b"deflated " * 50
    bundle = ResourceBundle(
        make_bundle(
            [
                ("a.png", 0, plain),
                ("b.svg", 1, struct.pack(">I", len(packed)) + zlib.compress(packed)),
                ("ü.ogg", 4, zstandard.ZstdCompressor().compress(packed)),
            ],
            version,
        ),
        "bundle",
    )
    assert bundle.paths() == ["pics/a.png", "pics/b.svg", "pics/ü.ogg"]
    assert bundle.read("pics/a.png") == plain
    assert bundle.read("pics/b.svg") == packed
    assert bundle.read("pics/ü.ogg") == packed


def test_a_path_reaches_into_a_bundle(tmp_path):
    root = tmp_path / "thing/usr"
    root.mkdir(parents=True)
    (root / "x.rcc").write_bytes(make_bundle([("a.png", 0, b"pixels")]))
    package = obtain({"thing": []}, tmp_path, cache=tmp_path)["thing"]
    assert package.read("/usr/x.rcc!pics/a.png") == b"pixels"
    with pytest.raises(PackageError, match="no entry pics/b"):
        package.read("/usr/x.rcc!pics/b.png")


def test_a_damaged_bundle_is_refused():
    whole = make_bundle([("a.png", 1, b"\0\0\0\5not deflated")])
    with pytest.raises(PackageError, match="damaged"):
        ResourceBundle(whole, "bundle").read("pics/a.png")
    with pytest.raises(PackageError, match="damaged"):
        ResourceBundle(whole[:40], "bundle")
    with pytest.raises(PackageError, match="qres"):
        ResourceBundle(b"RIFF" + whole[4:], "bundle")


def test_an_entry_that_runs_past_the_end_is_refused():
    whole = make_bundle([("a.png", 0, b"x" * 10)])
    at = whole.index(b"x" * 10)
    long = whole[: at - 4] + struct.pack(">I", 10_000) + whole[at:]
    with pytest.raises(PackageError, match="of its 10000 bytes"):
        ResourceBundle(long, "bundle").read("pics/a.png")


def test_a_bundle_whose_folders_hold_each_other_is_refused():
    loop = bytearray(make_bundle([("a.png", 0, b"x")]))
    loop[24 + 22 + 10 : 24 + 22 + 14] = struct.pack(">I", 1)
    with pytest.raises(PackageError, match="holds node"):
        ResourceBundle(bytes(loop), "bundle")


def test_the_cache_follows_the_users_setting(monkeypatch):
    from atlasd.streams.packages import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/atlasd/packages")
