use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::codec;
use crate::container::{Checkpoint, output};
use crate::error::{Kind, Result};
use crate::metadata::{Array, Metadata, Value};

fn spec(name: &str, shape: &[usize], codec: &str) -> TensorSpec {
    TensorSpec { name: name.into(), shape: shape.to_vec(), codec: codec::find(codec).unwrap() }
}

fn pairs() -> Metadata {
    let mut pairs = Metadata::default();
    pairs.set("general.architecture", "llama");
    pairs.set("general.name", "Zoë \0 ∑");
    pairs.set("u8", 1u8);
    pairs.set("i8", -1i8);
    pairs.set("u16", u16::MAX);
    pairs.set("i16", i16::MIN);
    pairs.set("u32", u32::MAX);
    pairs.set("i32", i32::MIN);
    pairs.set("u64", u64::MAX);
    pairs.set("i64", i64::MIN);
    pairs.set("f32", 0.1f32);
    pairs.set("f64", 0.1f64);
    pairs.set("bool", true);
    pairs.set("bools", vec![true, false]);
    pairs.set("bytes", vec![0u8, 255]);
    pairs.set("i8s", vec![-1i8]);
    pairs.set("u16s", vec![1u16]);
    pairs.set("i16s", vec![-1i16]);
    pairs.set("u32s", vec![1u32, 2]);
    pairs.set("i32s", vec![-1i32]);
    pairs.set("u64s", vec![1u64]);
    pairs.set("i64s", vec![-1i64]);
    pairs.set("f32s", vec![0.5f32]);
    pairs.set("f64s", vec![0.5f64]);
    pairs.set("strings", vec!["a".to_owned(), String::new()]);
    pairs.set("empty", Value::Array(Array::Str(vec![])));
    pairs
}

fn specs() -> Vec<TensorSpec> {
    vec![
        spec("output_norm.weight", &[5], "f32"),
        spec("blk.0.ffn_up_exps.weight", &[3, 2, 7], "f16"),
        spec("token_embd.weight", &[4, 3], "bf16"),
    ]
}

/// Byte `i` of tensor `t`.
fn byte(t: usize, i: usize) -> u8 {
    (t * 91 + i * 7 + 1) as u8
}

fn content(t: usize, bytes: u64) -> Vec<u8> {
    (0..bytes as usize).map(|i| byte(t, i)).collect()
}

fn write(path: &Path, metadata: &Metadata, specs: &[TensorSpec], split: Option<u64>) -> Result<Vec<PathBuf>> {
    let layout = layout(metadata, specs, split)?;
    let writer = create(path, metadata, specs, split, &[], None)?;
    for (t, slot) in layout.slots.iter().enumerate() {
        writer.write_at(t, 0, &content(t, slot.bytes))?;
    }
    writer.finish()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let (metadata, specs) = (pairs(), specs());
    let layout = layout(&metadata, &specs, None).unwrap();
    let writer = create(&path, &metadata, &specs, None, &[], None).unwrap();
    std::thread::scope(|scope| {
        let (writer, layout) = (&writer, &layout);
        for parity in 0..2 {
            scope.spawn(move || {
                for (t, slot) in layout.slots.iter().enumerate().rev() {
                    for i in (0..slot.bytes as usize).rev().skip(parity).step_by(2) {
                        writer.write_at(t, i as u64, &[byte(t, i)]).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(names(folder.path()), [".m.gguf.partial"]);
    assert_eq!(writer.finish().unwrap(), [path.as_path()]);
    assert_eq!(names(folder.path()), ["m.gguf"]);

    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, layout.bytes());
    let header = parse(&bytes).unwrap();
    assert_eq!((header.version, header.alignment), (VERSION, ALIGNMENT));
    assert_eq!(header.metadata, metadata);
    assert!(header.is_contiguous());

    let model = Gguf::open(&path).unwrap();
    assert_eq!(model.arch(), "llama");
    assert_eq!(model.metadata().unwrap(), metadata);
    assert_eq!(model.files(), [(path, layout.bytes())]);
    for (t, (tensor, spec)) in model.tensors().iter().zip(&specs).enumerate() {
        assert_eq!((&tensor.name, &tensor.shape), (&spec.name, &spec.shape));
        assert_eq!(tensor.codec.name(), spec.codec.name());
        let planes: Vec<u8> =
            (0..tensor.planes()).flat_map(|p| model.read(t, p).unwrap().packed.parts[0].to_vec()).collect();
        assert_eq!(planes, content(t, tensor.bytes as u64));
    }
}

#[test]
fn padding_is_zero_even_over_a_left_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(folder.path().join(".m.gguf.partial"), vec![0xaa; 1 << 16]).unwrap();
    write(&path, &pairs(), &specs(), None).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = parse(&bytes).unwrap();
    let mut covered = header.data;
    for tensor in header.tensors {
        assert!(bytes[covered..tensor.offset].iter().all(|b| *b == 0));
        covered = tensor.offset + tensor.bytes;
    }
    assert!(bytes[covered..].iter().all(|b| *b == 0));
    assert!(bytes.len().is_multiple_of(ALIGNMENT));
}

#[test]
fn shapes_lose_leading_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let specs = [spec("a", &[1, 1, 3, 1, 2], "f32"), spec("b", &[1, 1], "f32"), spec("c", &[], "f32")];
    write(&path, &pairs(), &specs[..2], None).unwrap();
    let shapes: Vec<_> = Gguf::open(&path).unwrap().tensors().iter().map(|t| t.shape.clone()).collect();
    assert_eq!(shapes, [vec![3, 1, 2], vec![1]]);
    assert!(layout(&pairs(), &specs[2..], None).is_err());
}

#[test]
fn alignment_follows_the_metadata() {
    let mut metadata = pairs();
    metadata.set(KEY_ALIGNMENT, 256u32);
    let layout = layout(&metadata, &specs(), None).unwrap();
    assert!(layout.slots.iter().all(|s| s.offset.is_multiple_of(256)));
    metadata.set(KEY_ALIGNMENT, 48u32);
    assert_eq!(super::layout(&metadata, &specs(), None).unwrap_err().kind, Kind::Request);
}

/// 64, 32, 96, 32 and 32 bytes.
fn five() -> Vec<TensorSpec> {
    [16, 8, 20, 1, 8].iter().enumerate().map(|(i, n)| spec(&format!("t{i}"), &[*n], "f32")).collect()
}

#[test]
fn shards_fill_up_to_the_limit() {
    let shards =
        |limit| layout(&pairs(), &five(), Some(limit)).unwrap().slots.iter().map(|s| s.shard).collect::<Vec<_>>();
    assert_eq!(shards(96), [0, 0, 1, 2, 2]);
    assert_eq!(shards(128), [0, 0, 1, 1, 2]);
    assert_eq!(shards(1), [0, 1, 2, 3, 4]);
    assert_eq!(shards(1 << 40), [0; 5]);
}

#[test]
fn split_files_are_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut metadata = pairs();
    metadata.set("split.count", 9u16); // of the source
    let paths = write(&folder.path().join("m.gguf"), &metadata, &five(), Some(96)).unwrap();
    let expected = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
    assert_eq!(names(folder.path()), expected);
    assert_eq!(paths, expected.map(|name| folder.path().join(name)));

    let model = Gguf::open(&paths[0]).unwrap();
    assert_eq!(model.metadata().unwrap(), pairs());
    assert!(model.is_contiguous());
    assert_eq!(
        model.tensors().iter().map(|t| t.file.as_str()).collect::<Vec<_>>(),
        [0, 0, 1, 2, 2].map(|i| expected[i])
    );
    for (t, tensor) in model.tensors().iter().enumerate() {
        assert_eq!(model.read(t, 0).unwrap().packed.parts[0], content(t, tensor.bytes as u64));
    }
    let second = parse(&fs::read(&paths[1]).unwrap()).unwrap().metadata;
    let second: Vec<_> = second.iter().collect();
    let expected =
        [("split.no", Value::U16(1)), ("split.tensors.count", Value::I32(5)), ("split.count", Value::U16(3))];
    assert_eq!(second, expected.iter().map(|(k, v)| (*k, v)).collect::<Vec<_>>());
}

#[test]
fn a_split_that_needs_one_shard_is_numbered_too() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(&folder.path().join("m"), &pairs(), &specs(), Some(1 << 30)).unwrap();
    assert_eq!(names(folder.path()), ["m-00001-of-00001.gguf"]);
    assert_eq!(Gguf::open(&paths[0]).unwrap().tensors().len(), 3);
}

#[test]
fn incomplete_files_never_get_their_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let create = || create(&path, &pairs(), &five(), Some(64), &[], None).unwrap();
    let writer = create();
    writer.write_at(0, 0, &[0; 63]).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("63 of 64 bytes were written"), "{error}");
    assert!(names(folder.path()).is_empty());
    drop(create());
    assert!(names(folder.path()).is_empty());
}

#[test]
fn writes_stay_inside_their_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let writer = create(&folder.path().join("m.gguf"), &pairs(), &five(), None, &[], None).unwrap();
    for (tensor, offset, length) in [(0, 0, 65), (0, 64, 1), (0, u64::MAX, 1), (5, 0, 0)] {
        assert!(writer.write_at(tensor, offset, &vec![0; length]).is_err());
    }
}

#[test]
fn two_runs_do_not_share_an_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let create = || create(&path, &pairs(), &five(), None, &[], None);
    let first = create().unwrap();
    let error = create().err().unwrap();
    assert!(error.to_string().contains("another run is writing"), "{error}");
    assert_eq!(names(folder.path()), [".m.gguf.partial"], "the second must not remove the file of the first");
    drop(first);
    create().unwrap();
}

#[test]
fn inputs_are_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.gguf");
    write(&source, &pairs(), &specs(), None).unwrap();
    let link = folder.path().join("link.gguf");
    fs::hard_link(&source, &link).unwrap();
    for path in [&source, &link, &folder.path().join(".").join("source.gguf")] {
        let error = create(path, &pairs(), &specs(), None, std::slice::from_ref(&source), None).err().unwrap();
        assert!(error.to_string().contains("one of the inputs"), "{error}");
    }
    assert!(output::same_file(&source, &link));
    assert!(!output::same_file(&source, &folder.path().join("none")));
    assert!(Gguf::open(&source).is_ok());
}

#[test]
fn outputs_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let create = |path: &Path, specs: &[TensorSpec]| create(path, &pairs(), specs, None, &[], None).err().unwrap();
    assert_eq!(create(folder.path(), &specs()).kind, Kind::Request);
    let error = create(&folder.path().join("none/m.gguf"), &specs());
    assert!(error.to_string().contains("folder does not exist"), "{error}");
    // 4 PiB
    let error = create(&folder.path().join("m.gguf"), &[spec("t", &[1 << 50], "f32")]);
    assert_eq!(error.kind, Kind::Limits, "{error}");
    assert!(error.to_string().contains("needs 4503599.6 GB of disk space"), "{error}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn tensors_that_llama_cpp_could_not_read_are_refused() {
    let refused = |specs: &[TensorSpec], why: &str| {
        let error = layout(&pairs(), specs, None).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(&[spec("", &[1], "f32")], "a name of 0 bytes");
    refused(&[spec(&"n".repeat(64), &[1], "f32")], "a name of 64 bytes");
    refused(&[spec("t", &[1], "f32"), spec("t", &[2], "f32")], "two tensors of this name");
    refused(&[spec("t", &[0, 2], "f32")], "shape [0, 2]");
    refused(&[spec("t", &[2, 1, 1, 1, 1], "f32")], "shape [2, 1, 1, 1, 1]");
    refused(&[spec("t", &[usize::MAX, 2], "f32")], "larger than any file");
    refused(&[spec("t", &[1 << 60], "f32"), spec("u", &[1 << 60], "f32")], "larger than any file");
    layout(&pairs(), &[spec(&"n".repeat(63), &[1], "f32")], None).unwrap();
}
