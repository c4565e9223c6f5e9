//! One test for each way a GGUF file or an importance matrix can lie. None may panic, hang or allocate what the lie says.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};

use quant::calibrate::imatrix::Imatrix;
use quant::container::{self, gguf};
use quant::error::{Error, Result};

const U8: u32 = 0;
const U16: u32 = 2;
const U32: u32 = 4;
const I32: u32 = 5;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F32: u32 = 0;
const F16: u32 = 1;
const Q4_0: u32 = 2;
const NVFP4: u32 = 40;

/// Ends the test where anything asks for more memory than these small files can justify.
struct Frugal;

const FRUGAL: usize = 64 << 20;

// SAFETY: every call is passed on to the system's allocator, or refused with a null pointer as the contract allows.
unsafe impl GlobalAlloc for Frugal {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > FRUGAL {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Frugal = Frugal;

/// Puts a file together from parts that need not agree with each other.
#[derive(Clone)]
struct File {
    magic: &'static [u8],
    version: u32,
    tensor_count: Option<u64>,
    pair_count: Option<u64>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: usize,
}

fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

fn pair(key: impl AsRef<[u8]>, kind: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&string(key), &kind.to_le_bytes()[..], value.as_ref()].concat()
}

fn array(key: &str, element: u32, len: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    pair(key, ARRAY, [&element.to_le_bytes(), &len.to_le_bytes()[..], elements.as_ref()].concat())
}

/// `ne`: innermost dimension first, as the file has it.
fn tensor(name: impl AsRef<[u8]>, ne: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> = ne.iter().flat_map(|d| d.to_le_bytes()).collect();
    [&string(name), &(ne.len() as u32).to_le_bytes()[..], &dims, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

impl File {
    /// Two tensors, all true.
    fn honest() -> File {
        File {
            magic: b"GGUF",
            version: 3,
            tensor_count: None,
            pair_count: None,
            pairs: vec![pair("general.architecture", STRING, string("llama"))],
            tensors: vec![tensor("a.weight", &[8, 2], F32, 0), tensor("b.weight", &[8], F16, 64)],
            alignment: 32,
            data: 96,
        }
    }

    fn pair(mut self, pair: Vec<u8>) -> File {
        self.pairs.push(pair);
        self
    }

    fn tensor(mut self, tensor: Vec<u8>) -> File {
        self.tensors.push(tensor);
        self
    }

    fn tensors(mut self, tensors: &[Vec<u8>], data: usize) -> File {
        (self.tensors, self.data) = (tensors.to_vec(), data);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        self.pairs.iter().chain(&self.tensors).for_each(|part| out.extend(part));
        out.resize(out.len().next_multiple_of(self.alignment) + self.data, 0);
        out
    }

    fn refused(&self, why: &str) {
        refused(gguf::parse(&self.bytes()), why);
    }
}

#[track_caller]
fn refused<T>(result: Result<T>, why: &str) -> Error {
    let Err(error) = result else { panic!("accepted; expected an error about {why:?}") };
    assert!(error.to_string().contains(why), "expected an error about {why:?}, got: {error}");
    error
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn save(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[track_caller]
fn open_refused(path: &Path, why: &str) -> Error {
    let Err(error) = container::open(path) else { panic!("accepted; expected an error about {why:?}") };
    refused::<()>(Err(error), why)
}

#[test]
fn honest_files_are_accepted() {
    let header = gguf::parse(&File::honest().bytes()).unwrap();
    assert_eq!(header.tensors.len(), 2);
    assert_eq!(header.tensors[0].shape, [2, 8]);
    assert!(header.is_contiguous());
    let v2 = File { version: 2, ..File::honest() };
    assert_eq!(gguf::parse(&v2.bytes()).unwrap().version, 2);
}

#[test]
fn every_cut_is_refused() {
    let mut file = File::honest().pair(array("tokens", STRING, 2, [string("x"), string("y")].concat())).bytes();
    file.truncate(file.len() - 16); // padding behind the last tensor may be missing
    gguf::parse(&file).unwrap();
    for length in 0..file.len() {
        assert!(gguf::parse(&file[..length]).is_err(), "accepted {length} of {} bytes", file.len());
    }
}

#[test]
fn magic() {
    File { magic: b"GGML", ..File::honest() }.refused("not a GGUF file");
}

#[test]
fn version_1() {
    File { version: 1, ..File::honest() }.refused("GGUF version 1");
}

#[test]
fn version_of_the_future() {
    File { version: 4, ..File::honest() }.refused("GGUF version 4");
}

#[test]
fn big_endian() {
    File { version: 3u32.swap_bytes(), ..File::honest() }.refused("big-endian");
}

#[test]
fn tensor_count() {
    File { tensor_count: Some(3), ..File::honest() }.refused("");
    File { tensor_count: Some(u64::MAX), ..File::honest() }.refused("tensors do not fit");
    File { tensor_count: Some(1 << 40), ..File::honest() }.refused("tensors do not fit");
}

#[test]
fn pair_count() {
    File { pair_count: Some(u64::MAX), ..File::honest() }.refused("metadata pairs do not fit");
    File { pair_count: Some(1 << 40), ..File::honest() }.refused("metadata pairs do not fit");
}

#[test]
fn key_length() {
    File::honest().pair(u64::MAX.to_le_bytes().to_vec()).refused("do not fit");
    File::honest().pair((1u64 << 40).to_le_bytes().to_vec()).refused("do not fit");
}

#[test]
fn empty_key() {
    File::honest().pair(pair("", U8, [1])).refused("key 1 is empty");
}

#[test]
fn key_twice() {
    File::honest().pair(pair("k", U8, [1])).pair(pair("k", U8, [2])).refused("metadata key k occurs twice");
}

#[test]
fn key_not_utf8() {
    File::honest().pair(pair(b"\xff\xfe", U8, [1])).refused("key 1 is not valid UTF-8");
}

#[test]
fn value_type() {
    File::honest().pair(pair("k", 13, [0; 8])).refused("unknown value type 13");
    File::honest().pair(array("k", 13, 1, [0; 8])).refused("unknown array element type 13");
}

#[test]
fn nested_array() {
    let inner = [&U8.to_le_bytes()[..], &1u64.to_le_bytes(), &[0]].concat();
    let error = refused(gguf::parse(&File::honest().pair(array("deep", ARRAY, 1, inner)).bytes()), "array of arrays");
    assert_eq!(error.places(), ["metadata deep"]);
}

#[test]
fn array_length() {
    for element in [U8, U16, U32, BOOL, STRING] {
        File::honest().pair(array("k", element, u64::MAX, [])).refused("do not fit");
        File::honest().pair(array("k", element, 1 << 40, [0; 64])).refused("do not fit");
    }
}

#[test]
fn string_length() {
    File::honest().pair(pair("k", STRING, u64::MAX.to_le_bytes())).refused("do not fit");
    File::honest().pair(array("k", STRING, 1, u64::MAX.to_le_bytes())).refused("do not fit");
}

#[test]
fn string_not_utf8() {
    let error = refused(gguf::parse(&File::honest().pair(pair("name", STRING, string(b"\xff"))).bytes()), "UTF-8");
    assert_eq!(error.places(), ["metadata name"]);
    File::honest().pair(array("k", STRING, 1, string(b"\xc3\x28"))).refused("string 0 is not valid UTF-8");
}

#[test]
fn boolean() {
    File::honest().pair(pair("k", BOOL, [2])).refused("a boolean is 0 or 1");
    File::honest().pair(array("k", BOOL, 2, [1, 255])).refused("a boolean is 0 or 1");
}

#[test]
fn alignment() {
    for bad in [0u32, 3, 33, u32::MAX] {
        File::honest().pair(pair("general.alignment", U32, bad.to_le_bytes())).refused("power of two");
    }
    File::honest().pair(pair("general.alignment", STRING, string("32"))).refused("power of two");
    File::honest().pair(pair("general.alignment", U32, (1u32 << 31).to_le_bytes())).refused("ends inside its header");
}

#[test]
fn larger_alignment_is_honoured() {
    let aligned = |offset| {
        let mut file = File::honest().pair(pair("general.alignment", U32, 128u32.to_le_bytes()));
        file.alignment = 128;
        file.tensors(&[tensor("a", &[8], F32, 0), tensor("b", &[8], F32, offset)], 160)
    };
    assert!(gguf::parse(&aligned(128).bytes()).unwrap().is_contiguous());
    aligned(32).refused("offset 32 is not a multiple of the alignment 128");
}

#[test]
fn tensor_name() {
    File::honest().tensor(tensor("", &[8], F32, 0)).refused("tensor 2 has no name");
    File::honest().tensor(tensor(b"\xff", &[8], F32, 0)).refused("the name of tensor 2 is not valid UTF-8");
    File::honest().tensor(tensor("a.weight", &[8], F32, 0)).refused("tensor a.weight occurs twice");
    File::honest().tensor([&u64::MAX.to_le_bytes()[..], &[0; 32]].concat()).refused("do not fit");
}

#[test]
fn dimension_count() {
    File::honest().tensor(tensor("c", &[1; 5], F32, 0)).refused("5 dimensions");
    let endless = [&string("c"), &u32::MAX.to_le_bytes()[..], &[0; 64]].concat();
    File::honest().tensor(endless).refused("4294967295 dimensions");
}

#[test]
fn dimension_of_zero() {
    File::honest().tensor(tensor("c", &[8, 0], F32, 96)).refused("a dimension of 0");
}

#[test]
fn dimensions_overflow() {
    for ne in [&[u64::MAX][..], &[1 << 32, 1 << 32], &[1 << 62, 4], &[1 << 21, 1 << 21, 1 << 21, 1 << 21]] {
        for kind in [F32, F16] {
            File::honest().tensor(tensor("c", ne, kind, 96)).refused("");
        }
    }
    // The product of the outer dimensions wraps to 0.
    File::honest().tensor(tensor("c", &[1, 1 << 32, 1 << 32], F32, 96)).refused("larger than any file");
}

#[test]
fn tensor_type() {
    for kind in [4, 5, 31, 9999, u32::MAX] {
        let error =
            refused(gguf::parse(&File::honest().tensor(tensor("c", &[8], kind, 96)).bytes()), "unknown tensor type");
        assert_eq!(error.places(), ["c"]);
    }
}

#[test]
fn row_of_part_of_a_block() {
    File::honest().tensor(tensor("c", &[33, 2], Q4_0, 96)).refused("needs rows in multiples of 32");
}

#[test]
fn offset_not_aligned() {
    File::honest().tensor(tensor("c", &[2], F32, 80)).refused("not a multiple of the alignment 32");
}

#[test]
fn offset_beyond_the_file() {
    for offset in [96, 1 << 40, u64::MAX - 31, (i64::MAX as u64) - 31] {
        let file = File::honest().tensor(tensor("c", &[2], F32, offset));
        let error = refused(gguf::parse(&file.bytes()), "beyond the end of the file");
        assert_eq!(error.places(), ["c"]);
    }
}

#[test]
fn size_beyond_the_file() {
    File::honest().tensors(&[tensor("c", &[25], F32, 0)], 96).refused("beyond the end of the file");
    File::honest().tensors(&[tensor("c", &[1 << 40], F32, 0)], 96).refused("beyond the end of the file");
}

#[test]
fn tensors_overlap() {
    let same = [tensor("a", &[8], F32, 0), tensor("b", &[8], F32, 0)];
    File::honest().tensors(&same, 96).refused("its bytes overlap those of a");
    let inside = [tensor("b", &[8], F32, 32), tensor("a", &[16], F32, 0)];
    File::honest().tensors(&inside, 96).refused("its bytes overlap those of a");
}

#[test]
fn gaps_and_order_are_free_but_noticed() {
    let gap = [tensor("a", &[8], F32, 0), tensor("b", &[8], F32, 64)];
    let order = [tensor("a", &[8], F32, 32), tensor("b", &[8], F32, 0)];
    for tensors in [gap, order] {
        assert!(!gguf::parse(&File::honest().tensors(&tensors, 96).bytes()).unwrap().is_contiguous());
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let block = pair("deep.list", ARRAY, [&STRING.to_le_bytes()[..], &1u64.to_le_bytes(), &string("t")].concat());
    let seeds = [
        File::honest().pair(block).bytes(),
        imatrix(&sums_and_counts(), [1.0, 2.0]),
        [legacy(b"a.weight", 2), trailer()].concat(),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    const TELLING: [u64; 8] = [0, 1, 7, 255, i32::MAX as u64, u32::MAX as u64, i64::MAX as u64, u64::MAX];
    for round in 0..60_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=random(3) {
            let (at, width) = (random(bytes.len()), [1, 4, 8][random(3)]);
            let value = if random(2) == 0 { TELLING[random(8)] } else { random(usize::MAX) as u64 };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        bytes.truncate(bytes.len() - random(8).saturating_sub(5));
        if let Ok(header) = gguf::parse(&bytes) {
            assert!(header.tensors.iter().all(|t| t.offset + t.bytes <= bytes.len()));
        }
        if let Ok(imatrix) = Imatrix::parse(&bytes) {
            assert!(imatrix.entries().all(|n| imatrix.get(n).is_some_and(|e| e.values.len() == e.planes * e.cols)));
        }
    }
}

#[test]
fn many_keys_take_no_quadratic_time() {
    let file = (0..200_000u32).fold(File::honest(), |file, i| file.pair(pair(i.to_string(), U8, [0])));
    let start = std::time::Instant::now();
    gguf::parse(&file.bytes()).unwrap();
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

// Models

#[test]
fn no_such_file() {
    let folder = folder();
    open_refused(&folder.path().join("none.gguf"), "none.gguf");
}

#[test]
fn a_folder_is_no_file() {
    let folder = folder();
    save(&folder, "inside.gguf", &File::honest().bytes());
    open_refused(folder.path(), "GGUF files: inside.gguf");
}

#[test]
fn files_of_other_kinds() {
    let folder = folder();
    for (bytes, what) in [
        (&b""[..], "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"PK\x03\x04................", "zip archive"),
        (b"<!DOCTYPE html>", "web page"),
        (b"tjgg\x03\0\0\0", "GGJT"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "safetensors"),
        (b"something else", "neither a GGUF file nor a Hugging Face folder"),
    ] {
        open_refused(&save(&folder, "model", bytes), what);
    }
}

#[test]
fn no_architecture() {
    let folder = folder();
    let file = File { pairs: vec![], ..File::honest() };
    open_refused(&save(&folder, "m.gguf", &file.bytes()), "general.architecture is missing");
}

#[test]
fn an_importance_matrix_is_no_model() {
    let folder = folder();
    let file = File::honest().pair(pair("general.type", STRING, string("imatrix")));
    open_refused(&save(&folder, "m.gguf", &file.bytes()), "importance matrix, not a model");
}

#[test]
fn errors_name_tensor_and_file() {
    let folder = folder();
    let path = save(&folder, "m.gguf", &File::honest().tensor(tensor("c", &[2], F32, 1 << 40)).bytes());
    let error = open_refused(&path, "beyond the end");
    assert_eq!(error.places(), ["c", path.to_str().unwrap()]);
}

/// An NVFP4 weight of three experts and a companion called `name`.
fn scaled(name: &str, ne: &[u64], kind: u32, values: &[f32]) -> Vec<u8> {
    let tensors = [tensor("e.weight", &[64, 1, 3], NVFP4, 0), tensor(name, ne, kind, 128)];
    let mut bytes = File::honest().tensors(&tensors, 160).bytes();
    let start = bytes.len() - 32;
    for (i, value) in values.iter().enumerate() {
        bytes[start + 4 * i..][..4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn scale_of_a_weight() {
    let folder = folder();
    let open = |bytes: &[u8]| container::open(&save(&folder, "m.gguf", bytes));
    for (ne, values, expected) in [(3, &[2.0, 3.0, 4.0][..], [2.0, 3.0, 4.0]), (1, &[5.0], [5.0; 3])] {
        let model = open(&scaled("e.scale", &[ne], F32, values)).unwrap();
        assert_eq!([0, 1, 2].map(|plane| model.read(0, plane).unwrap().scale), expected);
        assert_eq!(model.tensors().len(), 2, "a copy must carry the companion");
    }
    let other = open(&scaled("e.input_scale", &[3], F32, &[2.0, 3.0, 4.0])).unwrap();
    assert_eq!(other.read(0, 1).unwrap().scale, 1.0);
    for (ne, kind, value, why) in [
        (2, F32, 1.0, "a weight's scale is f32 [1] or [3]"),
        (3, F16, 1.0, "a weight's scale is f32 [1] or [3]"),
        (3, F32, f32::NAN, "a weight's scale is NaN"),
        (3, F32, f32::INFINITY, "a weight's scale is inf"),
    ] {
        let path = save(&folder, "bad.gguf", &scaled("e.scale", &[ne], kind, &[value]));
        assert_eq!(open_refused(&path, why).places()[0], "e.scale");
    }
    let path = save(&folder, "bad.gguf", &scaled("e.scale", &[1, 3], F32, &[2.0, 3.0, 4.0]));
    open_refused(&path, "a weight's scale is f32 [1] or [3]");
}

#[test]
fn reading_what_is_not_there() {
    let folder = folder();
    let model = container::open(&save(&folder, "m.gguf", &File::honest().bytes())).unwrap();
    assert!(model.read(0, 0).is_ok());
    refused(model.read(0, 1), "no plane 1");
    refused(model.read(2, 0), "tensor 2");
}

// Split models

fn shard(no: u16, count: u16, total: i32) -> File {
    File {
        pairs: vec![
            pair("split.no", U16, no.to_le_bytes()),
            pair("split.count", U16, count.to_le_bytes()),
            pair("split.tensors.count", I32, total.to_le_bytes()),
        ],
        tensors: vec![tensor(format!("t{no}.weight"), &[8], F32, 0)],
        data: 32,
        ..File::honest()
    }
}

fn first(count: u16, total: i32) -> File {
    shard(0, count, total).pair(pair("general.architecture", STRING, string("llama")))
}

const ONE: &str = "m-00001-of-00002.gguf";
const TWO: &str = "m-00002-of-00002.gguf";

#[test]
fn honest_shards_are_accepted() {
    let folder = folder();
    save(&folder, TWO, &shard(1, 2, 2).bytes());
    let model = container::open(&save(&folder, ONE, &first(2, 2).bytes())).unwrap();
    assert_eq!(model.tensors().iter().map(|t| t.file.as_str()).collect::<Vec<_>>(), [ONE, TWO]);
    assert_eq!(model.files().len(), 2);
    assert_eq!(model.metadata().unwrap().len(), 1);
}

#[test]
fn shard_missing() {
    let folder = folder();
    open_refused(&save(&folder, ONE, &first(2, 2).bytes()), TWO);
}

#[test]
fn later_shard_opened() {
    let folder = folder();
    open_refused(&save(&folder, TWO, &shard(1, 2, 2).bytes()), "open m-00001-of-00002.gguf");
}

#[test]
fn shard_renamed() {
    let folder = folder();
    open_refused(&save(&folder, "model.gguf", &first(2, 2).bytes()), "its name must end in -00001-of-00002.gguf");
}

#[test]
fn shard_cut_short() {
    let folder = folder();
    let bytes = shard(1, 2, 2).bytes();
    save(&folder, TWO, &bytes[..bytes.len() - 1]);
    let error = open_refused(&save(&folder, ONE, &first(2, 2).bytes()), "beyond the end of the file");
    assert!(error.places()[1].ends_with(TWO));
}

#[test]
fn shards_that_do_not_belong_together() {
    let lies = [
        (first(2, 2), shard(0, 2, 2), "split.no is 0, expected 1"),
        (first(2, 2), shard(1, 3, 2), "split.count is 3, expected 2"),
        (first(2, 2), shard(1, 2, 9), "split.tensors.count is 9, expected 2"),
        (first(2, 3), shard(1, 2, 3), "split.tensors.count is 3, expected 2"),
        (first(2, 2), File { pairs: vec![], ..shard(1, 2, 2) }, "split.no is missing"),
        (
            first(2, 2),
            shard(1, 2, 2).tensors(&[tensor("t0.weight", &[8], F32, 0)], 32),
            "this tensor is also in m-00001",
        ),
    ];
    for (one, two, why) in lies {
        let folder = folder();
        save(&folder, TWO, &two.bytes());
        open_refused(&save(&folder, ONE, &one.bytes()), why);
    }
}

#[test]
fn split_count() {
    let folder = folder();
    let huge = File::honest().pair(pair("split.count", U32, 70_000u32.to_le_bytes()));
    open_refused(&save(&folder, ONE, &huge.bytes()), "split.count is 70000");
    let no_number = File::honest().pair(pair("split.count", U16, 2u16.to_le_bytes()));
    open_refused(&save(&folder, ONE, &no_number.bytes()), "split.no is missing");
    let merged = File::honest().pair(pair("split.count", U16, 0u16.to_le_bytes()));
    container::open(&save(&folder, "merged.gguf", &merged.bytes())).unwrap();
}

// Importance matrices

fn imatrix_pairs() -> Vec<Vec<u8>> {
    vec![
        pair("general.type", STRING, string("imatrix")),
        array("imatrix.datasets", STRING, 1, string("wiki.txt")),
        pair("imatrix.chunk_count", U32, 7u32.to_le_bytes()),
        pair("imatrix.chunk_size", U32, 512u32.to_le_bytes()),
    ]
}

/// Two experts of four columns: sums 0..8, counts as given.
fn imatrix(tensors: &[Vec<u8>], counts: [f32; 2]) -> Vec<u8> {
    let file = File { pairs: imatrix_pairs(), ..File::honest() };
    let mut bytes = file.tensors(tensors, 64).bytes();
    let start = bytes.len() - 64;
    for i in 0..8 {
        bytes[start + 4 * i..][..4].copy_from_slice(&(i as f32).to_le_bytes());
    }
    for (i, count) in counts.iter().enumerate() {
        bytes[start + 32 + 4 * i..][..4].copy_from_slice(&count.to_le_bytes());
    }
    bytes
}

fn sums_and_counts() -> [Vec<u8>; 2] {
    [tensor("e.weight.in_sum2", &[4, 2], F32, 0), tensor("e.weight.counts", &[1, 2], F32, 32)]
}

#[test]
fn honest_importance_is_accepted() {
    let file = Imatrix::parse(&imatrix(&sums_and_counts(), [2.0, 0.0])).unwrap();
    assert_eq!(file.get("e.weight").unwrap().values, [0.0, 0.5, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn importance_that_is_no_number() {
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let error = refused(Imatrix::parse(&imatrix(&sums_and_counts(), [bad, 1.0])), "a count of");
        assert_eq!(error.places(), ["e.weight"]);
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut bytes = imatrix(&sums_and_counts(), [1.0, 1.0]);
        let start = bytes.len() - 64;
        bytes[start..start + 4].copy_from_slice(&bad.to_le_bytes());
        assert_eq!(refused(Imatrix::parse(&bytes), "a mean square of").places(), ["e.weight"]);
    }
}

#[test]
fn importance_of_half_an_entry() {
    let [sums, counts] = sums_and_counts();
    refused(Imatrix::parse(&imatrix(&[sums], [1.0; 2])), "counts is missing");
    refused(Imatrix::parse(&imatrix(&[counts], [1.0; 2])), "in_sum2 is missing");
    refused(Imatrix::parse(&imatrix(&[], [1.0; 2])), "no entries");
}

#[test]
fn importance_of_other_shapes_and_types() {
    let [sums, counts] = sums_and_counts();
    let three = tensor("e.weight.counts", &[1, 3], F32, 32);
    refused(Imatrix::parse(&imatrix(&[sums.clone(), three], [1.0; 2])), "3 counts for sums of shape [2, 4]");
    let half = tensor("e.weight.counts", &[1, 2], F16, 32);
    refused(Imatrix::parse(&imatrix(&[sums, half], [1.0; 2])), "e.weight.counts is f16, not f32");
    let half = tensor("e.weight.in_sum2", &[4, 2], F16, 0);
    refused(Imatrix::parse(&imatrix(&[half, counts], [1.0; 2])), "e.weight.in_sum2 is f16, not f32");
}

#[test]
fn importance_without_its_keys() {
    for missing in 1..4 {
        let mut file = File { pairs: imatrix_pairs(), ..File::honest() };
        file.pairs.remove(missing);
        refused(Imatrix::parse(&file.bytes()), "is missing or of another type");
    }
    let error = refused(Imatrix::parse(&File::honest().bytes()), "imatrix.datasets is missing");
    assert!(error.to_string().contains("this is a model (llama)"));
}

/// One entry of two values, then the trailer.
fn legacy(name: &[u8], values: i32) -> Vec<u8> {
    let mut out = 1i32.to_le_bytes().to_vec();
    out.extend((name.len() as i32).to_le_bytes());
    out.extend(name);
    out.extend(4i32.to_le_bytes());
    out.extend(values.to_le_bytes());
    out.extend([8f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
    out
}

fn trailer() -> Vec<u8> {
    [&9i32.to_le_bytes()[..], &4i32.to_le_bytes(), b"wiki"].concat()
}

#[test]
fn honest_legacy_importance_is_accepted() {
    let file = Imatrix::parse(&[legacy(b"a.weight", 2), trailer()].concat()).unwrap();
    assert_eq!(file.get("a.weight").unwrap().values, [2.0, 0.5]);
    assert_eq!((file.chunk_count, file.datasets.as_slice()), (9, &["wiki".to_owned()][..]));
    assert_eq!(Imatrix::parse(&legacy(b"a.weight", 2)).unwrap().chunk_count, 0);
}

#[test]
fn every_cut_of_legacy_importance_is_refused() {
    let (entry, trailer) = (legacy(b"a.weight", 2), trailer());
    let whole = [entry.as_slice(), &trailer].concat();
    for length in (0..whole.len()).filter(|n| *n != entry.len()) {
        assert!(Imatrix::parse(&whole[..length]).is_err(), "accepted {length} of {} bytes", whole.len());
    }
}

#[test]
fn legacy_importance_that_lies() {
    let set = |offset: usize, value: i32| {
        let mut bytes = [legacy(b"a.weight", 2), trailer()].concat();
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    const LENGTH: usize = 4;
    const VALUES: usize = 20;
    refused(Imatrix::parse(&set(0, 0)), "no entries");
    refused(Imatrix::parse(&set(0, -1)), "-1 entries");
    refused(Imatrix::parse(&set(0, 2)), "entry 1 of 2");
    refused(Imatrix::parse(&set(0, i32::MAX)), "of 2147483647");
    refused(Imatrix::parse(&set(LENGTH, -1)), "-1 bytes of a string");
    refused(Imatrix::parse(&set(LENGTH, i32::MAX)), "ends inside the name");
    refused(Imatrix::parse(&set(LENGTH, 0)), "the name is empty");
    refused(Imatrix::parse(&set(VALUES, 0)), "no values");
    refused(Imatrix::parse(&set(VALUES, -5)), "-5 values");
    refused(Imatrix::parse(&set(VALUES, i32::MAX)), "ends inside the values");
    refused(Imatrix::parse(&set(VALUES + 4, f32::NAN.to_bits() as i32)), "a mean square of NaN");
    refused(Imatrix::parse(&set(VALUES + 4, f32::INFINITY.to_bits() as i32)), "a mean square of inf");
    refused(Imatrix::parse(&set(VALUES + 12, -1)), "-1 chunks");
    refused(Imatrix::parse(&set(VALUES + 16, 3)), "1 bytes follow the end");
    refused(Imatrix::parse(&legacy(b"\xff\xfe", 2)), "the name is not valid UTF-8");
    let twice = [&2i32.to_le_bytes()[..], &legacy(b"a", 2)[4..], &legacy(b"a", 2)[4..]].concat();
    refused(Imatrix::parse(&twice), "this entry occurs twice");
}

#[test]
fn files_that_are_no_importance_matrix() {
    let folder = folder();
    refused(Imatrix::open(folder.path()), "not a regular file");
    refused(Imatrix::open(&folder.path().join("none")), "none");
    refused(Imatrix::open(&save(&folder, "empty", b"")), "ends inside");
    refused(Imatrix::parse(b""), "ends inside");
    refused(Imatrix::parse(b"version https://git-lfs.github.com/spec/v1"), "git lfs pull");
    refused(Imatrix::parse(b"a note about imatrix files"), "neither a GGUF nor a legacy");
}
