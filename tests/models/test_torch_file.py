"""Weight files put together by hand, instruction by instruction, as PyTorch writes them, and as an attacker might.

tests/parity reads what PyTorch itself has written.
"""

import dataclasses
import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from cnn_research.models.torch_file import read_state_dict
from cnn_research.models.torch_pickle import unpickle

# -- pickles, protocol 2


@dataclasses.dataclass
class Raw:
    """Instructions that leave one value on the stack."""

    code: bytes


def emit(value) -> bytes:
    match value:
        case Raw():
            return value.code
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(emit, value)) + b"t"
        case list():
            return b"](" + b"".join(map(emit, value)) + b"e"
        case dict():
            return b"}(" + b"".join(emit(key) + emit(item) for key, item in value.items()) + b"u"
    raise TypeError(value)


def pickled(value) -> bytes:
    return b"\x80\x02" + emit(value) + b"."


def name(module, attribute) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function: Raw, *arguments) -> Raw:
    return Raw(function.code + emit(arguments) + b"R")


def ordered(items: dict, attributes=None) -> Raw:
    """An OrderedDict as Python 3 pickles it."""
    code = call(name("collections", "OrderedDict")).code + emit(items)[1:]
    return Raw(code + (emit(attributes) + b"b" if attributes else b""))


def storage(key, count, kind="FloatStorage", *view) -> Raw:
    return Raw(emit(("storage", name("torch", kind), key, "cpu", count, *view)) + b"Q")


def tensor(source: Raw, shape, strides, offset=0) -> Raw:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, source, offset, shape, strides, False, call(name("collections", "OrderedDict")))


# -- files


def write_zip(path, content, storages, *, byteorder="little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickled(content))
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


MAGIC = 0x1950A86A20F9469CFC6C


def write_legacy(path, content, storages, *, version=1001, little_endian=True, itemsize=4):
    machine = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}
    parts = [pickled(MAGIC), pickled(version), pickled(machine)]
    # A reference to a storage has a sixth part here, which says that it is not a view of another.
    parts.append(content if isinstance(content, bytes) else pickled(content).replace(b"tQ", b"NtQ"))
    parts.append(pickled(list(storages)))
    order = "<" if little_endian else ">"
    parts += [struct.pack(order + "q", len(data) // itemsize) + data for data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


SIX = np.arange(6, dtype="<f4") + 0.5
WEIGHT = ordered({"weight": tensor(storage("0", 6), (2, 3), (3, 1))})


@pytest.fixture(params=[write_zip, write_legacy], ids=["zip", "legacy"])
def write(request, tmp_path):
    return lambda *args, **kwargs: request.param(tmp_path / "weights.pth", *args, **kwargs)


# -- what is read


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    {
        "as it is": ((2, 3), (3, 1), 0, [[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]]),
        "transposed": ((3, 2), (1, 3), 0, [[0.5, 3.5], [1.5, 4.5], [2.5, 5.5]]),
        "a column": ((2,), (3,), 1, [1.5, 4.5]),
        "the last element": ((1,), (1,), 5, [5.5]),
        "a number": ((), (), 2, 2.5),
        "the stride of a single row says nothing": ((1, 2), (2**62, 1), 0, [[0.5, 1.5]]),
        "overlapping windows": ((2, 2), (1, 1), 0, [[0.5, 1.5], [1.5, 2.5]]),
        "nothing": ((0, 3), (3, 1), 0, np.zeros((0, 3))),
    }.values(),
)
def test_views_of_a_storage(write, shape, strides, offset, expected):
    path = write(ordered({"x": tensor(storage("0", 6), shape, strides, offset)}), {"0": SIX.tobytes()})
    read = read_state_dict(path)["x"]
    np.testing.assert_array_equal(read, np.asarray(expected, np.float32), strict=True)
    assert not read.flags.writeable


def test_tensors_share_their_storage(write):
    source = storage("0", 6)
    content = ordered({"all": tensor(source, (6,), (1,)), "part": tensor(source, (2,), (2,), 1)})
    read = read_state_dict(write(content, {"0": SIX.tobytes()}))
    assert np.shares_memory(read["all"], read["part"])
    np.testing.assert_array_equal(read["part"], SIX[1:5:2])


# bfloat16: 1 sign, 8 exponent, 7 mantissa bits: 0x3FC0 = 1.5, 0xC000 = -2, 0x7F80 = inf.
@pytest.mark.parametrize(
    ("kind", "code", "numbers", "expected"),
    [
        ("DoubleStorage", "f8", [0.1, -2], np.array([0.1, -2], np.float64)),
        ("FloatStorage", "f4", [0.1, -2], np.array([0.1, -2], np.float32)),
        ("HalfStorage", "f2", [1.5, -2], np.array([1.5, -2], np.float32)),
        ("BFloat16Storage", "u2", [0x3FC0, 0xC000, 0x7F80], np.array([1.5, -2, np.inf], np.float32)),
        ("LongStorage", "i8", [-1, 2**40], np.array([-1, 2**40], np.int64)),
        ("IntStorage", "i4", [-1, 2], np.array([-1, 2], np.int32)),
        ("ShortStorage", "i2", [-1, 2], np.array([-1, 2], np.int16)),
        ("CharStorage", "i1", [-1, 2], np.array([-1, 2], np.int8)),
        ("ByteStorage", "u1", [1, 255], np.array([1, 255], np.uint8)),
        ("BoolStorage", "u1", [1, 0], np.array([True, False])),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_types_and_byte_orders(kind, code, numbers, expected, order, tmp_path):
    data = np.array(numbers).astype(("<" if order == "little" else ">") + code).tobytes()
    content = ordered({"x": tensor(storage("7", len(numbers), kind), (len(numbers),), (1,))})
    files = [
        write_zip(tmp_path / "zip", content, {"7": data}, byteorder=order),
        write_legacy(
            tmp_path / "legacy", content, {"7": data}, little_endian=order == "little", itemsize=np.dtype(code).itemsize
        ),
    ]
    for path in files:
        np.testing.assert_array_equal(read_state_dict(path)["x"], expected, strict=True)


def test_a_zip_file_without_a_byte_order_is_little_endian(tmp_path):
    path = write_zip(tmp_path / "weights.pth", WEIGHT, {"0": SIX.tobytes()}, byteorder=None)
    np.testing.assert_array_equal(read_state_dict(path)["weight"], SIX.reshape(2, 3))


PARAMETER = name("torch.nn.parameter", "Parameter")
DATA = call(name("torch._utils", "_rebuild_tensor"), storage("0", 6), 0, (2, 3), (3, 1))
W = tensor(storage("0", 6), (2, 3), (3, 1))


@pytest.mark.parametrize(
    "content",
    {
        "with the versions of modules": ordered({"weight": W}, {"_metadata": ordered({"": {"version": 1}})}),
        "a dict": {"weight": W},
        "a parameter": {"weight": call(name("torch._utils", "_rebuild_parameter"), W, True, ordered({}))},
        # PyTorch 0.1 and Python 2: a parameter gets its attributes afterwards, and an OrderedDict its items as a list.
        "a parameter of old": {"weight": Raw(call(PARAMETER, DATA).code + emit((True, False, None)) + b"b")},
        "an OrderedDict of old": call(name("collections", "OrderedDict"), [["weight", DATA]]),
        "a checkpoint": {"epoch": 90, "lr": 0.1, "done": True, "arch": None, "state_dict": ordered({"weight": W})},
        "another checkpoint": {"model": {"weight": W}, "optimizer": {"state": {0: [W, (1, 2)]}}},
        "DataParallel": ordered({"module.weight": W}),
        "a checkpoint of DataParallel": {"state_dict": ordered({"module.weight": W})},
    }.values(),
)
def test_ways_to_keep_a_state_dict(write, content):
    read = read_state_dict(write(content, {"0": SIX.tobytes()}))
    assert list(read) == ["weight"]
    np.testing.assert_array_equal(read["weight"], SIX.reshape(2, 3))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_what_pickle_makes_of_them(protocol):
    shared = [1, -1, 255, 256, 65536, -(2**31), 2**31, 2**63 - 1, 2**200, -(2**2100), 0.1, "ü" * 300, "", True, False]
    value = {"a": shared, "b": {1: (), 2: (1,), 3: (1, 2), 4: (1, 2, 3), 5: (1, 2, 3, 4)}, "c": [shared, [], {}, None]}
    if protocol > 2:  # protocol 2 pickles bytes as a call of codecs.encode
        value["d"] = [b"bytes", bytes(300)]
    value["many"] = {f"key {i}": [i] for i in range(1500)}  # more than the pickler puts into one batch
    read = unpickle(io.BytesIO(pickle.dumps(value, protocol)), {})
    assert read == value
    assert read["a"] is read["c"][0]


def test_only_a_prefix_of_all_names_is_removed(tmp_path):
    content = ordered({"module.weight": W, "bias": W})
    assert list(read_state_dict(write_zip(tmp_path / "x", content, {"0": SIX.tobytes()}))) == ["module.weight", "bias"]


def test_safetensors(tmp_path):
    tensors = {"b.weight": SIX.reshape(2, 3), "a.bias": np.float16([1.5, -2]), "n": np.array(3)}
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    read = read_state_dict(path)
    assert list(read) == ["a.bias", "b.weight", "n"]
    for key, value in tensors.items():
        expected = value.astype(np.float32) if value.dtype == np.float16 else value
        np.testing.assert_array_equal(read[key], expected, strict=True)
        assert not read[key].flags.writeable


def safetensors_file(path, dtype, data, shape):
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_safetensors_in_bfloat16(tmp_path):
    path = safetensors_file(tmp_path / "x.safetensors", "BF16", struct.pack("<2H", 0x3FC0, 0xC000), [2, 1])
    np.testing.assert_array_equal(read_state_dict(path)["x"], np.array([[1.5], [-2]], np.float32), strict=True)


# -- what is refused


def function(module, attribute, *arguments) -> bytes:
    """A pickle that, unpickled by Python, calls the function."""
    return pickled(call(name(module, attribute), *arguments))


HOSTILE = {
    "a system call": (lambda mark: function("os", "system", f"touch {mark}"), "os.system"),
    "posix by its own name": (lambda mark: function("posix", "system", f"touch {mark}"), "posix.system"),
    "eval": (lambda mark: function("builtins", "eval", f"open({mark!r}, 'w')"), "builtins.eval"),
    "open": (lambda mark: function("builtins", "open", mark, "w"), "builtins.open"),
    "eval of Python 2": (lambda mark: function("__builtin__", "eval", f"open({mark!r}, 'w')"), "__builtin__.eval"),
    "a module that torch imports": (lambda mark: function("torch", "os.system", f"touch {mark}"), "torch.os.system"),
    "a path through torch._utils": (
        lambda mark: function("torch._utils", "sys.modules", f"touch {mark}"),
        "torch._utils.sys.modules",
    ),
    "another function of torch._utils": (
        lambda mark: function("torch._utils", "_import_dotted_name", "os.system"),
        "torch._utils._import_dotted_name",
    ),
    "torch.load": (lambda mark: function("torch", "load", mark), "torch.load"),
    "another class of collections": (
        lambda mark: function("collections", "defaultdict", name("builtins", "list")),
        "collections.defaultdict",
    ),
    "a part of an allowed class": (
        lambda mark: function("collections", "OrderedDict.fromkeys", [mark]),
        "collections.OrderedDict.fromkeys",
    ),
    "an argument of an allowed class": (
        lambda mark: pickled(
            call(name("collections", "OrderedDict"), [["x", call(name("os", "system"), f"touch {mark}")]])
        ),
        "os.system",
    ),
    "by two strings on the stack": (
        lambda mark: b"\x80\x04" + emit("os") + emit("system") + b"\x93" + emit((f"touch {mark}",)) + b"R.",
        "os.system",
    ),
    "by a name that is no string": (
        lambda mark: b"\x80\x04" + emit(("os",)) + emit("system") + b"\x93" + emit((f"touch {mark}",)) + b"R.",
        "without a name",
    ),
    "an instance (protocol 0)": (lambda mark: b"(" + emit(f"touch {mark}") + b"ios\nsystem\n.", "INST"),
    "an object (protocol 1)": (
        lambda mark: b"(" + name("collections", "OrderedDict").code + b"o.",
        "OBJ",
    ),
    "a new object": (
        lambda mark: b"\x80\x02" + name("collections", "OrderedDict").code + emit(()) + b"\x81.",
        "NEWOBJ",
    ),
    "a registered extension": (lambda mark: b"\x80\x02\x82\x01.", "EXT1"),
    "attributes of a function": (
        lambda mark: b"\x80\x02" + name("collections", "OrderedDict").code + emit({"x": 1}) + b"b.",
        "attributes",
    ),
    "a call of a storage's type": (lambda mark: function("torch", "FloatStorage", 10**9), "FloatStorage"),
    "a call of a string": (lambda mark: b"\x80\x02" + emit(mark) + emit(()) + b"R.", "makes no sense"),
    "what pickle makes of a class with __reduce__": (
        lambda mark: pickle.dumps({"x": ReducesTo(__import__("os").system, f"touch {mark}")}, 2),
        ".system",
    ),
}


class ReducesTo:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(("hostile", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_executes_nothing(write, hostile, message, tmp_path):
    mark = tmp_path / "executed"
    code = hostile(str(mark))
    with pytest.raises(ValueError) as refusal:
        read_state_dict(write(code, {}))
    assert message in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert not mark.exists()


def test_the_attacks_would_work_on_pickle(tmp_path):
    """Else the test above would show nothing."""
    for attack in ("a system call", "eval", "open", "by two strings on the stack", "an argument of an allowed class"):
        mark = tmp_path / attack.replace(" ", "_")
        pickle.loads(HOSTILE[attack][0](str(mark)))
        assert mark.exists(), attack


def test_hostile_pickles_in_the_other_parts_of_the_legacy_format(tmp_path):
    mark = tmp_path / "executed"
    attack = function("os", "system", f"touch {mark}")
    good = [pickled(MAGIC), pickled(1001), pickled({}), pickled(WEIGHT), pickled([])]
    for index in range(1, 5):
        path = tmp_path / "x.pth"
        path.write_bytes(b"".join(good[:index] + [attack] + good[index + 1 :]))
        with pytest.raises(ValueError, match="os.system"):
            read_state_dict(path)
    assert not mark.exists()


def nested(depth) -> bytes:
    """A tuple of twice a tuple of twice a tuple...: short, but to hash, compare or print it takes 2^depth steps."""
    return emit(()) + b"q\x00h\x00\x86" * depth


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "too long": ({"x": tensor(storage("0", 6), (7,), (1,))}, "'x' of shape (7,)"),
        "one too far": ({"x": tensor(storage("0", 6), (2, 3), (3, 1), 1)}, "beyond its storage of 6"),
        "long strides": ({"x": tensor(storage("0", 6), (2, 3), (4, 1))}, "beyond its storage"),
        "far away": ({"x": tensor(storage("0", 6), (1,), (1,), 2**62)}, "beyond its storage"),
        "negative offset": ({"x": tensor(storage("0", 6), (1,), (1,), -1)}, "no sizes"),
        "negative stride": ({"x": tensor(storage("0", 6), (2,), (-1,), 1)}, "no sizes"),
        "negative size": ({"x": tensor(storage("0", 6), (-2, -3), (3, 1))}, "no sizes"),
        "beyond 64 bits": ({"x": tensor(storage("0", 6), (2**64,), (0,))}, "no sizes"),
        "terabytes of one number": ({"x": tensor(storage("0", 6), (2**20, 2**20), (0, 0))}, "beyond its storage"),
        "nothing times a lot": ({"x": tensor(storage("0", 6), (0, 2**62, 2**62), (1, 1, 1))}, ""),
        "fewer strides than sizes": ({"x": tensor(storage("0", 6), (2, 3), (3,))}, "no sizes"),
        "many axes": ({"x": tensor(storage("0", 6), (1,) * 99, (1,) * 99)}, "no sizes"),
        "a larger storage than there is": ({"x": tensor(storage("0", 600), (6,), (1,))}, "storage '0'"),
        "a huge storage": ({"x": tensor(storage("0", 2**60), (6,), (1,))}, "storage '0'"),
        "another storage than there is": ({"x": tensor(storage("9", 6), (6,), (1,))}, "damaged"),
        "a path as a key": ({"x": tensor(storage("../version", 6), (6,), (1,))}, "damaged"),
        "two types of one storage": (
            {"x": W, "y": tensor(storage("0", 3, "DoubleStorage"), (3,), (1,))},
            "two types or sizes",
        ),
        "complex numbers": ({"x": tensor(storage("0", 3, "ComplexFloatStorage"), (3,), (1,))}, "ComplexFloatStorage"),
        "a view of a storage": ({"x": tensor(storage("0", 6, "FloatStorage", ("1", 1, 2)), (2,), (1,))}, "reference"),
        "no storage": ({"x": tensor(Raw(emit("0")), (2,), (1,))}, "no storage"),
        "no tensor": ({"x": W, "y": 1.5}, "'y' is no tensor"),
        "an unknown wrapper": ({"net": {"x": W}}, "'net' is no tensor"),
        "a number for a name": ({1: W}, "1 is no tensor"),
        "a list": ([W], "no tensors by name"),
        "a tensor": (W, "no tensors by name"),
        "a negative tensor": (
            {
                "x": call(
                    name("torch._utils", "_rebuild_tensor_v2"),
                    *(storage("0", 6), 0, (2,), (1,)),
                    False,
                    None,
                    {"neg": True},
                )
            },
            "negative",
        ),
        "a key that takes forever to hash": (Raw(b"}" + nested(60) + b"Ns"), "no name"),
        "a storage that takes forever": (Raw(nested(60) + b"Q"), "reference"),
    }.values(),
)
def test_refuses_what_is_no_state_dict(write, content, message):
    with pytest.raises(ValueError) as refusal:
        read_state_dict(write(content, {"0": SIX.tobytes()}))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_refuses_a_file_of_no_tensors(write):
    with pytest.raises(ValueError, match="no tensors by name"):
        read_state_dict(write({}, {}))


def test_refuses_a_storage_that_is_missing(write):
    with pytest.raises(ValueError, match="damaged"):
        read_state_dict(write(WEIGHT, {}))


def test_refuses_every_truncated_file(tmp_path):
    files = [
        write_zip(tmp_path / "zip", WEIGHT, {"0": SIX.tobytes()}),
        write_legacy(tmp_path / "legacy", WEIGHT, {"0": SIX.tobytes()}),
        safetensors_file(tmp_path / "safetensors", "F32", SIX.tobytes(), [6]),
    ]
    for path in files:
        whole = path.read_bytes()
        assert read_state_dict(path)
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=path.name):
                read_state_dict(path)


def test_refuses_compressed_archives(tmp_path):
    """A few kilobytes of them could stand for gigabytes."""
    path = write_zip(tmp_path / "x", WEIGHT, {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_state_dict(path)


def test_names_are_not_printed_in_full_length(tmp_path):
    path = write_zip(tmp_path / "x", {"n" * 10**6: 1}, {})
    with pytest.raises(ValueError) as refusal:
        read_state_dict(path)
    assert len(str(refusal.value)) < 1000


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    return buffer.getvalue()


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photos/cat.jpg", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "nothing": (b"", "neither"),
        "text": (b"version https://git-lfs.github.com/spec/v1\n" * 20, "neither"),
        "a web page": (b"<!DOCTYPE html>" * 40, "neither"),
        "a pickle": (pickle.dumps({"a": 1}, 2), "neither"),
        "another zip file": (zip_file(), "without PyTorch's data.pkl"),
        "PyTorch 0.1": (tar_file(), "tar file"),
        "another version": (pickled(MAGIC) + pickled(1002) + pickled({}) * 2 + pickled([]), "1001"),
        "another type": (None, "F8_E4M3"),
    }.values(),
)
def test_refuses_other_files(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    if content is None:
        safetensors_file(path, "F8_E4M3", bytes(2), [2])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_state_dict(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")
