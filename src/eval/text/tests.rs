use std::fs;
use std::sync::Arc;

use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::*;

fn roles(row: &Value) -> Result<String> {
    let messages = row["messages"].as_array().into_iter().flatten();
    Ok(messages.map(|m| format!("<{}>{}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())).collect())
}

fn load(name: &str, bytes: impl AsRef<[u8]>) -> Result<Vec<String>> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    Corpus::load(&[path], &roles).map(|c| c.documents)
}

fn refused(name: &str, bytes: impl AsRef<[u8]>) -> String {
    load(name, bytes).unwrap_err().to_string()
}

#[test]
fn plain_text_is_exact() {
    let text = "\u{feff} a\r\n\n\tb \n\n";
    assert_eq!(load("a.TXT", text).unwrap(), [text]);
}

#[test]
fn json_lines_of_every_kind() {
    let rows = concat!(
        "\u{feff}{\"text\": \"one\\n\", \"id\": 7}\n",
        "\n",
        "{\"prompt\": \"2+2=\", \"completion\": \"4\"}\r\n",
        "{\"text\": null, \"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n",
        "{\"text\": \"\"}\n",
        "{\"text\": \"\\u00e9\\ud83d\\ude00\", \"messages\": 5}"
    );
    assert_eq!(load("a.jsonl", rows).unwrap(), ["one\n", "2+2=4", "<user>hi", "", "é😀"]);
}

#[test]
fn what_is_wrong_with_json_lines_is_said_with_its_line() {
    let cases = [
        ("{\"text\": 5}", "`text` is a number, not a string"),
        ("{\"prompt\": [], \"completion\": \"x\"}", "`prompt` is a list, not a string"),
        ("{\"messages\": \"x\"}", "`messages` is a string, not a list"),
        ("{\"prompt\": \"x\", \"body\": \"y\"}", "it has \"prompt\", \"body\""),
        ("{\"text\": null}", "no field with text"),
        ("{}", "it has none"),
        ("[1]", "a list, not a JSON object"),
        ("{\"text\": \"x\"", "not JSON: EOF while parsing an object, column 12"),
        ("{\"text\": \"\\ud800\"}", "not JSON"),
    ];
    for (line, wanted) in cases {
        let error = refused("a.jsonl", format!("{{\"text\": \"fine\"}}\n\n{line}\n"));
        assert!(error.contains(wanted), "{line}: {error}");
        assert!(error.contains("in line 3\n") && error.contains("a.jsonl") && error.contains("help: "), "{error}");
    }
    let deep = "[".repeat(100_000);
    assert!(refused("a.jsonl", deep).contains("not JSON"));
    let names: Vec<_> = (0..100).map(|i| format!("\"k{i}\": 1")).collect();
    assert!(refused("a.jsonl", format!("{{{}}}", names.join(","))).contains("\"k11\", 88 more"));
}

#[test]
fn a_renderer_that_refuses_is_heard() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("chat.jsonl");
    fs::write(&path, "{\"messages\": []}").unwrap();
    let error = Corpus::load(&[path], &|_| Err(Error::request("the model has no chat template"))).unwrap_err();
    assert_eq!(error.message(), "the model has no chat template");
    assert_eq!(error.places()[0], "line 1");
}

#[test]
fn not_utf8_names_offset_and_line() {
    for name in ["a.txt", "a.jsonl"] {
        let error = refused(name, b"ab\ncd\xe9f\n");
        assert!(error.contains("byte 0xe9 at offset 5") && error.contains("line 2"), "{error}");
    }
}

#[test]
fn files_without_text_are_refused() {
    for (name, bytes) in [("a.txt", ""), ("a.txt", " \n\t"), ("a.jsonl", "\n\n"), ("a.jsonl", "{\"text\": \" \"}")] {
        assert!(refused(name, bytes).contains("the file is empty"), "{name} {bytes:?}");
    }
    assert!(Corpus::load(&[], &roles).is_err());
}

#[test]
fn other_files_are_refused() {
    assert!(refused("a.json", "{}").contains(".jsonl"));
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("none.txt");
    assert!(Corpus::load(&[missing], &roles).unwrap_err().to_string().contains("none.txt"));
    let directory = folder.path().join("d.txt");
    fs::create_dir(&directory).unwrap();
    assert!(Corpus::load(&[directory], &roles).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn too_much_text_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.txt");
    fs::write(&path, "12345").unwrap();
    assert_eq!(read(&path, &roles, 5).unwrap(), ["12345"]);
    assert_eq!(read(&path, &roles, 4).unwrap_err().kind, crate::error::Kind::Limits);
    // A template may give far more than it was given.
    let chat = folder.path().join("a.jsonl");
    fs::write(&chat, "{\"messages\": []}").unwrap();
    assert!(read(&chat, &|_| Ok("x".repeat(100)), 99).is_err());
    assert!(read(&chat, &|_| Ok("x".repeat(100)), 100).is_ok());
}

#[test]
fn several_files_keep_their_order_and_name() {
    let folder = TempDir::new().unwrap();
    let (a, b) = (folder.path().join("b.txt"), folder.path().join("a.jsonl"));
    fs::write(&a, "first").unwrap();
    fs::write(&b, "{\"text\": \"second\"}").unwrap();
    let corpus = Corpus::load(&[a, b], &roles).unwrap();
    assert_eq!(
        (corpus.name.as_str(), corpus.documents.as_slice()),
        ("b.txt+a.jsonl", &["first".into(), "second".into()][..])
    );
}

#[test]
fn the_hash_tells_documents_apart() {
    let hash = |list: &[&str]| Corpus::new("x".into(), list.iter().map(|s| s.to_string()).collect()).hash;
    // Python's blake3 1.0: blake3.blake3((2).to_bytes(8, "little") + b"ab").hexdigest()
    assert_eq!(hash(&["ab"]), "e23ca0319a987bd0b4e0cdd98336845ac38359e6f133046bf63b3451fbe0563f");
    let all = [hash(&["ab"]), hash(&["a", "b"]), hash(&["b", "a"]), hash(&["", "ab"]), hash(&["ab", ""]), hash(&[])];
    for (i, one) in all.iter().enumerate() {
        assert_eq!(one.len(), 64);
        assert!(!all[..i].contains(one), "{i}");
    }
    assert_eq!(Corpus::new("y".into(), vec!["ab".into()]).hash, all[0], "the name is not part of it");
}

#[test]
fn the_bundled_corpus_is_mixed() {
    let corpus = Corpus::bundled();
    let size: usize = corpus.documents.iter().map(String::len).sum();
    assert!((60_000..120_000).contains(&size), "{size}");
    assert!(corpus.documents.len() > 35);
    for document in &corpus.documents {
        assert!((500..4000).contains(&document.len()), "{} bytes: {document:.60}", document.len());
        assert!(!document.contains(SEPARATOR.trim()) && !document.contains('\r') && document.trim_end() == document);
        assert!(!document.contains("<|") && !document.contains("[INST]"), "special tokens would be read as such");
    }
    let firsts: Vec<&str> = BUNDLED.iter().map(|f| f.split(SEPARATOR).next().unwrap()).collect();
    assert_eq!(corpus.documents[..5], firsts, "a beginning has one of each kind");
    let mut sorted = corpus.documents.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), corpus.documents.len());
    assert_eq!(corpus, Corpus::bundled());
}

/// A file of one column of strings (`None`: null), the rows split over groups of `group`.
fn parquet_file(column: &str, rows: &[Option<&[u8]>], group: usize, compression: Compression) -> Vec<u8> {
    let schema = format!("message rows {{ required int32 id; optional binary {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, properties).unwrap();
    for rows in rows.chunks(group) {
        let mut groups = writer.next_row_group().unwrap();
        let mut ids = groups.next_column().unwrap().unwrap();
        ids.typed::<Int32Type>().write_batch(&vec![1; rows.len()], None, None).unwrap();
        ids.close().unwrap();
        let mut texts = groups.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|r| ByteArray::from(r.to_vec())).collect();
        let levels: Vec<i16> = rows.iter().map(|r| r.is_some().into()).collect();
        texts.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        texts.close().unwrap();
        groups.close().unwrap();
    }
    writer.close().unwrap();
    file
}

fn texts(file: Vec<u8>, room: u64) -> Result<Vec<String>> {
    parquet::documents(file, &["messages"], &|row| document(row, &roles), room)
}

/// Two rows of `messages`, as data sets of chats have them.
fn chats(compression: Compression) -> Vec<u8> {
    let schema = "message rows { required int32 id; optional group messages (LIST) { repeated group list {
        optional group element { optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut ids = group.next_column().unwrap().unwrap();
    ids.typed::<Int32Type>().write_batch(&[7, 8], None, None).unwrap();
    ids.close().unwrap();
    for values in [["user", "bot", "user"], ["2+2?", "4", "Why?"]] {
        let mut column = group.next_column().unwrap().unwrap();
        let values = values.map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[4, 4, 4]), Some(&[0, 1, 0])).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    file
}

#[test]
fn parquet_messages_go_through_the_template() {
    let file = chats(Compression::SNAPPY);
    assert_eq!(load("a.parquet", &file).unwrap(), ["<user>2+2?<bot>4", "<user>Why?"]);
    assert!(texts(file.clone(), 40).unwrap_err().message().contains("MiB"));
    let refuse = |row: &Value| match row["id"] == 8 {
        true => Err(Error::input("no")),
        false => Ok(String::new()),
    };
    let error = parquet::documents(file, &["messages"], &refuse, 1 << 20).unwrap_err();
    assert!(error.to_string().contains("row 2"), "{error}");
}

#[test]
fn parquet_columns_come_back() {
    let long = "wort ".repeat(3000);
    let mut rows: Vec<Option<&[u8]>> =
        vec![Some(b""), Some(" = A = \n".as_bytes()), Some("日本".as_bytes()), Some(long.as_bytes())];
    rows.extend((0..3000).map(|_| Some(&b"again"[..])));
    let wanted: Vec<&str> = rows.iter().map(|r| std::str::from_utf8(r.unwrap()).unwrap()).collect();
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        for group in [1000, 5000] {
            let found = load("a.parquet", parquet_file("text", &rows, group, compression)).unwrap();
            assert_eq!(found, wanted, "{compression:?} {group}");
        }
    }
}

#[test]
fn parquet_without_text_is_refused() {
    let plain = Compression::UNCOMPRESSED;
    let error = refused("a.parquet", parquet_file("body", &[Some(b"x")], 1, plain));
    assert!(error.contains("no column `text`; it has \"id\", \"body\""), "{error}");
    let error = refused("a.parquet", parquet_file("text", &[Some(b"x"), Some(b"y"), None, Some(b"z")], 2, plain));
    assert!(error.contains("null") && error.contains("row 3"), "{error}");
    let error = refused("a.parquet", parquet_file("text", &[Some(b"x"), Some(b"\xff")], 9, plain));
    assert!(error.contains("not UTF-8") && error.contains("row 2"), "{error}");
    let file = parquet_file("text", &[Some(b"12345")], 1, plain);
    assert!(texts(file.clone(), 29).is_ok());
    assert!(texts(file, 28).unwrap_err().message().contains("MiB"));
    for bytes in [&b""[..], b"PAR1", b"PAR1\0\0\0\0PAR1", b"not parquet at all"] {
        assert!(refused("a.parquet", bytes).contains("help: "));
    }
}

#[test]
fn damaged_parquet_gets_an_answer() {
    let rows: Vec<Option<&[u8]>> = vec![Some(b"one"), Some(b"two"), Some(b"two"), Some(b"three")];
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        for whole in [parquet_file("text", &rows, 2, compression), chats(compression)] {
            for end in 0..whole.len() {
                assert!(texts(whole[..end].to_vec(), 1 << 20).is_err(), "cut at {end}");
            }
            for at in 0..whole.len() {
                for flip in [1, 0x10, 0x80, 0xff] {
                    let mut bad = whole.clone();
                    bad[at] ^= flip;
                    let _ = texts(bad, 1 << 20); // right or wrong, but no panic and no abort
                }
            }
        }
    }
}
