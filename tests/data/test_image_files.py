import pytest

from cnn_research.data.image_files import find_images
from cnn_research.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """Ten files by the names of images, in two folders."""
    for index in range(10):
        path = tmp_path / "pictures" / ("odd" if index % 2 else "even/deep") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "pictures"


def test_find_images(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    (pictures / "odd" / "notes.txt").write_text("")
    (pictures / "odd" / "[1].png").write_bytes(b"")
    assert find_images("odd") == [f"odd/{name}.png" for name in ("1", "3", "5", "7", "9", "[1]")]
    assert find_images(["odd/[1].png", "odd/3.*", "odd/3.png"]) == ["odd/[1].png", "odd/3.png"]
    assert set(find_images("**/*.png")) == {*find_images("even"), *find_images("odd")}
    assert find_images("*") == [*find_images("even"), *find_images("odd")]
    assert find_images("odd/notes.txt") == ["odd/notes.txt"]  # named, so it is tried
    assert find_images(["gone.png"]) == ["gone.png"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], ["no images are given"]),
        ("empty", ["no images in the folder empty", ".png"]),
        (["text"], ["no images in the folder text"]),
        ("*.jpeg", ["no image matches", "*.jpeg"]),
    ],
    ids=["no images", "empty folder", "folder of text", "pattern without matches"],
)
def test_nothing_to_find(where, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "log.txt").write_text("nothing")
    with pytest.raises(UserError) as error:
        find_images(where)
    assert "\n" not in str(error.value) and all(text in str(error.value) for text in expected)
