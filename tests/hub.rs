//! The hub client against a hub on this machine that misbehaves on demand.
#![cfg(feature = "hub")]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use common::folder::{Folder, SHARDS};
use quant::container::Checkpoint;
use quant::container::hf::HfFolder;
use quant::container::hub::{Event, Hub, Reference, Settings};
use quant::error::{Error, Kind};
use quant::eval::task::{File, presets};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub answers. Files are of the model `org/model` and the data set `org/set`, branch `main` and [`COMMIT`].
#[derive(Default)]
struct Misbehaviour {
    files: BTreeMap<String, Vec<u8>>,
    /// The size that files are said to have.
    claim: Option<usize>,
    /// Refuse requests without this token.
    token: Option<&'static str>,
    /// Answer everything with this status.
    status: Option<u16>,
    /// Send so many bytes of a file's body, then close; as often as said.
    cut: HashMap<String, (usize, usize)>,
    /// Leave out Content-Length, so that a cut body looks complete.
    no_length: bool,
    ignore_range: bool,
    /// Redirect to this host for contents, as the hub does for large files.
    cdn: Option<String>,
    etag: Option<&'static str>,
    commit: Option<&'static str>,
    /// `METHOD path range` of every request.
    log: Vec<String>,
}

struct Server {
    url: String,
    hub: Arc<Mutex<Misbehaviour>>,
    home: tempfile::TempDir,
}

impl Server {
    fn start(hub: Misbehaviour) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(Mutex::new(hub));
        let shared = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is not the hub's problem.
                let _ = answer(stream, &mut shared.lock().unwrap());
            }
        });
        Server { url, hub, home: tempfile::tempdir().unwrap() }
    }

    fn with(files: &[(&str, &[u8])]) -> Server {
        let files = files.iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect();
        Server::start(Misbehaviour { files, ..Misbehaviour::default() })
    }

    /// A hub with a Llama of two shards, and files nobody needs.
    fn llama() -> Server {
        let folder = Folder::llama();
        folder.write_shards();
        let names = ["config.json", "model.safetensors.index.json", SHARDS[0], SHARDS[1]];
        let mut files: BTreeMap<_, _> = names.map(|n| (n.to_owned(), std::fs::read(folder.file(n)).unwrap())).into();
        for unneeded in [
            "pytorch_model.bin",
            "original/consolidated.00.pth",
            "consolidated.safetensors",
            "onnx/model.onnx",
            "x.gguf",
        ] {
            files.insert(unneeded.to_owned(), b"unneeded".to_vec());
        }
        files.insert("tokenizer.json".into(), b"{}".to_vec());
        Server::start(Misbehaviour { files, ..Misbehaviour::default() })
    }

    fn set(&self, change: impl FnOnce(&mut Misbehaviour)) -> &Self {
        change(&mut self.hub.lock().unwrap());
        self
    }

    fn settings(&self, vars: &[(&str, &str)]) -> Settings {
        let home = self.home.path().display().to_string();
        let own = [("HF_HOME", home.as_str()), ("HF_ENDPOINT", self.url.as_str())];
        let var = |name: &str| vars.iter().chain(&own).find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        let mut settings = Settings::from_vars(var).unwrap();
        settings.pause = std::time::Duration::from_millis(1);
        settings
    }

    fn fetch(&self, vars: &[(&str, &str)], model: &str) -> Result<PathBuf, Error> {
        Hub::new(self.settings(vars))?.fetch(&Reference::parse(model).unwrap()?, &|_| {})
    }

    fn rows(&self, vars: &[(&str, &str)], set: &str) -> Result<PathBuf, Error> {
        Hub::new(self.settings(vars))?.fetch(&Reference::data(set).unwrap()?, &|_| {})
    }

    fn refuse_rows(&self, vars: &[(&str, &str)], set: &str, words: &[&str]) {
        let error = self.rows(vars, set).map(|p| panic!("fetched {}", p.display())).unwrap_err().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "no {word:?} in:\n{error}"));
    }

    fn quant(&self, args: &[&str]) -> std::process::Output {
        let vars = [("HF_HOME", self.home.path().to_str().unwrap()), ("HF_ENDPOINT", &self.url), ("NO_COLOR", "1")];
        std::process::Command::new(env!("CARGO_BIN_EXE_quant")).args(args).envs(vars).output().unwrap()
    }

    /// Requests for contents of files since the last call.
    fn downloads(&self) -> Vec<String> {
        let log = std::mem::take(&mut self.hub.lock().unwrap().log);
        log.into_iter()
            .filter_map(|l| Some(l.strip_prefix(&format!("GET /org/model/resolve/{COMMIT}/"))?.to_owned()))
            .collect()
    }

    fn refuse(&self, vars: &[(&str, &str)], model: &str, words: &[&str]) -> Error {
        let error = self.fetch(vars, model).map(|p| panic!("fetched {}", p.display())).unwrap_err();
        for word in words {
            assert!(error.to_string().contains(word), "no {word:?} in:\n{error}");
        }
        error
    }
}

/// Status line and headers; every connection serves one request.
fn head(status: &str, headers: &[(&str, String)]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    (out + "\r\n").into_bytes()
}

fn answer(mut stream: TcpStream, hub: &mut Misbehaviour) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    let headers: HashMap<String, String> = lines
        .map_while(|l| l.ok().filter(|l| !l.is_empty()))
        .filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let range = headers.get("range").cloned().unwrap_or_default();
    hub.log.push(format!("{method} {path} {range}"));
    let path = path.replacen("/api/datasets/org/set/", "/api/models/org/model/", 1);
    let path = path.replacen("/datasets/org/set/", "/org/model/", 1);
    let refuse = |status: &str| head(status, &[("Content-Length", "0".into())]);

    let token = headers.get("authorization");
    let on_cdn = path.starts_with("/cdn/");
    if on_cdn && token.is_some() {
        return stream.write_all(&refuse("400 Token sent to another host"));
    }
    let authorized = on_cdn || hub.token.is_none_or(|t| token == Some(&format!("Bearer {t}")));
    if let Some(status) = hub.status.or((!authorized).then_some(401)) {
        return stream.write_all(&refuse(&format!("{status} No")));
    }
    if path == "/api/models/org/model/revision/main" || path == format!("/api/models/org/model/revision/{COMMIT}") {
        let siblings: Vec<_> = hub.files.keys().map(|n| serde_json::json!({ "rfilename": n })).collect();
        let body = serde_json::json!({ "sha": hub.commit.unwrap_or(COMMIT), "siblings": siblings }).to_string();
        stream.write_all(&head("200 OK", &[("Content-Length", body.len().to_string())]))?;
        return stream.write_all(body.as_bytes());
    }
    let at_hub = path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/"));
    let Some((name, body)) = at_hub.or(path.strip_prefix("/cdn/")).and_then(|n| hub.files.get_key_value(n)) else {
        return stream.write_all(&refuse("404 Not Found"));
    };
    let size = hub.claim.unwrap_or(body.len());
    let etag = hub.etag.map_or(format!("\"{}-etag\"", name.replace('/', "-")), |e| format!("\"{e}\""));
    if let (Some(cdn), Some(name)) = (&hub.cdn, at_hub) {
        let of_the_redirect = [("ETag", "\"redirect\"".into()), ("Content-Length", "0".into())];
        let linked =
            [("Location", format!("{cdn}/cdn/{name}")), ("X-Linked-Etag", etag), ("X-Linked-Size", size.to_string())];
        return stream.write_all(&head("302 Found", &[&of_the_redirect[..], &linked].concat()));
    }
    if method == "HEAD" {
        return stream.write_all(&head("200 OK", &[("ETag", etag), ("Content-Length", size.to_string())]));
    }
    let from =
        range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse().ok()).filter(|_| !hub.ignore_range);
    let Some(part) = body.get(from.unwrap_or(0)..).filter(|p| !p.is_empty() || body.is_empty()) else {
        return stream.write_all(&refuse("416 Range Not Satisfiable"));
    };
    let mut headers = vec![("ETag", etag)];
    if let Some(from) = from {
        headers.push(("Content-Range", format!("bytes {from}-{}/{}", body.len() - 1, body.len())));
    }
    if !hub.no_length {
        headers.push(("Content-Length", part.len().to_string()));
    }
    stream.write_all(&head(if from.is_some() { "206 Partial Content" } else { "200 OK" }, &headers))?;
    let sent = match hub.cut.get_mut(name) {
        Some((at, times)) if *times > 0 => {
            *times -= 1;
            part.len().min(*at)
        }
        _ => part.len(),
    };
    stream.write_all(&part[..sent])
}

#[test]
fn a_model_is_downloaded_once() {
    let server = Server::llama();
    let folder = server.fetch(&[], "hf:org/model").unwrap();
    assert!(folder.ends_with(format!("hub/models--org--model/snapshots/{COMMIT}")), "{}", folder.display());
    let mut got = server.downloads();
    got.sort();
    let expected = ["config.json", SHARDS[0], SHARDS[1], "model.safetensors.index.json", "tokenizer.json"];
    assert_eq!(got, expected.map(|n| format!("{n} ")));
    let model = HfFolder::open(&folder).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(model.description().unwrap().str("general.name"), Some("Model"));
    assert_eq!(model.tensors().len(), 21);

    assert_eq!(server.fetch(&[], "hf:org/model").unwrap(), folder);
    assert_eq!(server.downloads(), [""; 0]);
    assert_eq!(server.fetch(&[], &format!("hf:org/model@{COMMIT}")).unwrap(), folder);
    assert_eq!(server.downloads(), [""; 0]);
}

#[test]
fn progress_is_reported() {
    let server = Server::with(&[("a.gguf", &[7; 100_000])]);
    let events = RefCell::new(Vec::new());
    let model = Reference::parse("hf:org/model/a.gguf").unwrap().unwrap();
    let report = |e: Event<'_>| events.borrow_mut().push(format!("{e:?}"));
    Hub::new(server.settings(&[])).unwrap().fetch(&model, &report).unwrap();
    let events = events.into_inner();
    assert_eq!(events[0], format!("{:?}", Event::Plan { files: 1, cached: 0 }));
    let last = Event::File { name: "a.gguf", done: 100_000, total: 100_000 };
    assert_eq!(events.last().unwrap(), &format!("{last:?}"));
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let content: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
    for no_length in [false, true] {
        let server = Server::with(&[("a.gguf", &content)]);
        server.set(|h| {
            h.no_length = no_length;
            h.cut.insert("a.gguf".into(), (70_000, 2));
        });
        let file = server.fetch(&[], "hf:org/model/a.gguf").unwrap();
        assert_eq!(std::fs::read(file).unwrap(), content);
        assert_eq!(server.downloads(), ["a.gguf ", "a.gguf bytes=70000-", "a.gguf bytes=140000-"]);
    }
}

#[test]
fn the_next_run_resumes_what_this_one_could_not_finish() {
    let content = vec![5; 10_000];
    let server = Server::with(&[("a.gguf", &content)]);
    server.set(|h| _ = h.cut.insert("a.gguf".into(), (4000, 1)));
    // One good attempt, then the hub is gone.
    let error = {
        let hub = server.hub.clone();
        let gone = move |e: Event<'_>| {
            if matches!(e, Event::Retry { .. }) {
                hub.lock().unwrap().status = Some(503);
            }
        };
        let model = Reference::parse("hf:org/model/a.gguf").unwrap().unwrap();
        Hub::new(server.settings(&[])).unwrap().fetch(&model, &gone).unwrap_err()
    };
    assert!(error.to_string().contains("503") && error.to_string().contains("run the same command again"), "{error}");
    assert!(error.to_string().contains("in a.gguf"), "{error}");
    server.downloads();
    server.set(|h| h.status = None);
    let file = server.fetch(&[], "hf:org/model/a.gguf").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), content);
    assert_eq!(server.downloads(), ["a.gguf bytes=4000-"]);
}

/// The blobs of the cache.
fn blobs(server: &Server) -> PathBuf {
    server.home.path().join("hub/models--org--model/blobs")
}

#[test]
fn parts_that_an_earlier_run_has_left() {
    // Complete but not renamed; longer than the file; of the right length already under its final name.
    for (left, name, downloads) in [
        (1000, "a.gguf-etag.incomplete", &[][..]),
        (1001, "a.gguf-etag.incomplete", &["a.gguf "]),
        (1000, "a.gguf-etag", &[]),
    ] {
        let server = Server::with(&[("a.gguf", &[5; 1000])]);
        std::fs::create_dir_all(blobs(&server)).unwrap();
        std::fs::write(blobs(&server).join(name), vec![5; left]).unwrap();
        let file = server.fetch(&[], "hf:org/model/a.gguf").unwrap();
        assert_eq!(std::fs::read(file).unwrap(), [5; 1000]);
        assert_eq!(server.downloads(), downloads);
    }
}

#[test]
fn a_hub_that_ignores_ranges_sends_all_again() {
    let server = Server::with(&[("a.gguf", &[5; 1000])]);
    server.set(|h| {
        h.ignore_range = true;
        h.cut.insert("a.gguf".into(), (400, 1));
    });
    let file = server.fetch(&[], "hf:org/model/a.gguf").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), [5; 1000]);
    assert_eq!(server.downloads(), ["a.gguf ", "a.gguf bytes=400-"]);
}

#[test]
fn wrong_lengths_are_noticed() {
    let server = Server::with(&[("a.gguf", &[5; 1000])]);
    server.set(|h| h.claim = Some(999));
    server.refuse(&[], "hf:org/model/a.gguf", &["1000 bytes or more of a file of 999", "in a.gguf"]);
    server.set(|h| h.claim = Some(1001));
    server.refuse(&[], "hf:org/model/a.gguf", &["416", "in a.gguf"]);
    // Nothing wrong stays behind.
    server.set(|h| h.claim = None);
    let file = server.fetch(&[], "hf:org/model/a.gguf").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), [5; 1000]);
}

#[test]
fn an_empty_file() {
    let server = Server::llama();
    server.set(|h| _ = h.files.insert("README.md".into(), Vec::new()));
    let folder = server.fetch(&[], "hf:org/model").unwrap();
    assert_eq!(std::fs::read(folder.join("README.md")).unwrap(), b"");
}

#[test]
fn one_process_at_a_time_downloads_a_file() {
    let server = Server::with(&[("a.gguf", &[5; 1000])]);
    let locks = server.home.path().join("hub/.locks/models--org--model");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = std::fs::File::create(locks.join("a.gguf-etag.lock")).unwrap();
    lock.lock().unwrap();
    let error = server.refuse(&[], "hf:org/model/a.gguf", &["another process", "wait for it"]);
    assert_eq!(error.kind, Kind::Io);
    drop(lock);
    server.fetch(&[], "hf:org/model/a.gguf").unwrap();
}

#[test]
fn a_hub_that_always_sends_too_little_is_given_up() {
    let server = Server::with(&[("a.gguf", &[5; 1000])]);
    server.set(|h| _ = h.cut.insert("a.gguf".into(), (0, usize::MAX)));
    server.refuse(&[], "hf:org/model/a.gguf", &["a.gguf", "run the same command again"]);
    assert_eq!(server.downloads().len(), 4);
}

#[test]
fn tokens() {
    let server = Server::llama();
    server.set(|h| h.token = Some("hf_secret"));
    let none = server.refuse(&[], "hf:org/model", &["without a token", "set HF_TOKEN", "/org/model"]);
    assert_eq!(none.kind, Kind::Request);
    let wrong = server.refuse(&[("HF_TOKEN", "hf_wrong")], "hf:org/model", &["refuses the token"]);
    assert!(!wrong.to_string().contains("hf_wrong"), "{wrong}");
    server.fetch(&[("HF_TOKEN", "hf_secret")], "hf:org/model").unwrap();
    server.set(|h| h.status = Some(403));
    server.refuse(&[("HF_TOKEN", "hf_secret")], "hf:org/model", &["no access", "accept its conditions at"]);
}

#[test]
fn large_files_come_from_another_host_without_the_token() {
    let server = Server::with(&[("a.gguf", &[5; 1000])]);
    let cdn = server.url.replace("127.0.0.1", "localhost");
    server.set(|h| (h.cdn, h.token) = (Some(cdn), Some("hf_secret")));
    let file = server.fetch(&[("HF_TOKEN", "hf_secret")], "hf:org/model/a.gguf").unwrap();
    assert_eq!(std::fs::read(file).unwrap(), [5; 1000]);
    assert!(blobs(&server).join("a.gguf-etag").exists());
}

#[test]
fn what_is_not_there() {
    let server = Server::llama();
    server.refuse(&[], "hf:org/other", &["no model org/other", "check the name"]);
    server.refuse(&[], "hf:org/model@nope", &["revision nope"]);
    server.refuse(&[], "hf:org/model/y.gguf", &["no file y.gguf", "x.gguf"]);
    server.set(|h| h.status = Some(429));
    server.refuse(&[], "hf:org/model", &["limits our requests"]);
}

#[test]
fn without_a_network_the_cache_serves() {
    let server = Server::llama();
    let folder = server.fetch(&[], "hf:org/model").unwrap();
    // A port that was just free refuses connections.
    let nowhere = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let offline = [("HF_ENDPOINT", nowhere.as_str())];
    assert_eq!(server.fetch(&offline, "hf:org/model").unwrap(), folder);
    assert_eq!(server.fetch(&[("HF_HUB_OFFLINE", "1")], "hf:org/model").unwrap(), folder);
    assert_eq!(server.fetch(&[("HF_HUB_OFFLINE", "1")], &format!("hf:org/model@{COMMIT}")).unwrap(), folder);
    for (vars, wanted) in [(&offline, true), (&[("HF_HUB_OFFLINE", "1")], false)] {
        let told = RefCell::new(None);
        let model = Reference::parse("hf:org/model").unwrap().unwrap();
        let follow = |event: Event<'_>| {
            if let Event::Offline { asked } = event {
                *told.borrow_mut() = Some(asked);
            }
        };
        Hub::new(server.settings(vars)).unwrap().fetch(&model, &follow).unwrap();
        assert_eq!(told.into_inner(), Some(wanted), "{vars:?}");
    }
    server.downloads();
    let error = server.refuse(&offline, "hf:org/other", &["cannot be reached", "HF_ENDPOINT", "local folder"]);
    assert_eq!(error.kind, Kind::Io);
    server.refuse(&[("HF_HUB_OFFLINE", "1")], "hf:org/other", &["HF_HUB_OFFLINE"]);
    assert!(server.hub.lock().unwrap().log.is_empty());
}

#[test]
fn models_that_cannot_be_read_are_refused_before_their_weights_are_downloaded() {
    let server = Server::llama();
    server.set(|h| _ = h.files.insert("config.json".into(), br#"{"architectures": ["FooForCausalLM"]}"#.to_vec()));
    server.refuse(&[], "hf:org/model", &["FooForCausalLM", "hf:org/model"]);
    assert!(server.downloads().iter().all(|d| !d.contains(".safetensors bytes")));
    let server = Server::llama();
    server.set(|h| h.files.retain(|n, _| !n.contains("safetensors") && !n.ends_with(".gguf")));
    server.refuse(&[], "hf:org/model", &["PyTorch files only", "save_pretrained"]);
}

#[test]
fn repositories_of_gguf_files() {
    let server = Server::with(&[
        ("a-Q4_K_M.gguf", b"a"),
        ("b/b-00001-of-00002.gguf", b"b1"),
        ("b/b-00002-of-00002.gguf", b"b2"),
        ("README.md", b""),
    ]);
    server.refuse(&[], "hf:org/model", &["GGUF files", "a-Q4_K_M.gguf"]);
    let file = server.fetch(&[], "hf:org/model/b/b-00001-of-00002.gguf").unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"b1");
    assert_eq!(std::fs::read(file.with_file_name("b-00002-of-00002.gguf")).unwrap(), b"b2");
    assert!(server.fetch(&[("HF_HUB_OFFLINE", "1")], "hf:org/model/b/b-00001-of-00002.gguf").unwrap() == file);
}

#[test]
fn a_hub_cannot_write_outside_the_cache() {
    let fetch = |change: fn(&mut Misbehaviour)| {
        let server = Server::with(&[("a.gguf", b"x")]);
        server.set(change);
        server.refuse(&[], "hf:org/model/a.gguf", &["127.0.0.1"]);
        let mut entries: Vec<_> =
            std::fs::read_dir(server.home.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        entries.retain(|e| e != "hub");
        assert!(entries.is_empty(), "{entries:?}");
    };
    fetch(|h| h.commit = Some("../../../x"));
    fetch(|h| h.etag = Some("../../../x"));
    fetch(|h| h.etag = Some("/tmp/x"));
    // Names of files outside are never asked for.
    let server = Server::llama();
    server.set(|h| {
        for name in ["../tokenizer.json", "/tokenizer.json", "additional_chat_templates/../../x.jinja"] {
            h.files.insert(name.into(), b"x".to_vec());
        }
    });
    server.fetch(&[], "hf:org/model").unwrap();
    assert!(server.downloads().iter().all(|d| !d.contains("..") && !d.starts_with('/')));
}

#[test]
fn references() {
    let parse = |text| Reference::parse(text).unwrap();
    let full = parse("hf:org/name/dir/file.gguf@refs/pr/1").unwrap();
    assert_eq!(
        (full.repo.as_str(), full.file.as_deref(), full.revision.as_str()),
        ("org/name", Some("dir/file.gguf"), "refs/pr/1")
    );
    assert_eq!(full.to_string(), "hf:org/name/dir/file.gguf@refs/pr/1");
    assert_eq!(parse("hf:gpt2").unwrap().to_string(), "hf:gpt2");
    assert!(Reference::parse("org/name").is_none());
    for wrong in [
        "hf:",
        "hf:/x",
        "hf:a/..",
        "hf:../a",
        "hf:a/b@../../x",
        "hf:a/b@",
        "hf:a/b/c.bin",
        "hf:a b/c",
        "hf:a/b/../c.gguf",
    ] {
        assert!(parse(wrong).unwrap_err().to_string().contains("hf:org/name"), "{wrong}");
    }
}

#[test]
fn rows_of_data_sets() {
    let server = Server::with(&[("data/test.jsonl", b"{}\n"), ("README.md", b""), ("set.py", b"")]);
    let file = server.rows(&[], "hf:org/set/data/test.jsonl").unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"{}\n");
    assert!(file.starts_with(server.home.path().join("hub/datasets--org--set/snapshots").join(COMMIT)));
    assert_eq!(server.rows(&[], "hf:org/set").unwrap(), file, "its only rows");
    let asked = std::mem::take(&mut server.hub.lock().unwrap().log);
    assert_eq!(asked.iter().filter(|l| l.starts_with("GET /datasets/org/set/resolve/")).count(), 1, "{asked:?}");

    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(server.rows(&offline, "hf:org/set/data/test.jsonl").unwrap(), file);
    server.refuse_rows(&offline, "hf:org/set", &["name its file (hf:org/set/FILE)"]);
    server.refuse_rows(&offline, "hf:org/set/other.jsonl", &["HF_HUB_OFFLINE"]);
    let nowhere = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let words = ["cannot be reached", "HF_ENDPOINT", "local file"];
    server.refuse_rows(&[("HF_ENDPOINT", &nowhere)], "hf:org/set/other.jsonl", &words);

    server.refuse_rows(&[], "hf:org/set/data/x.jsonl", &["no file data/x.jsonl", "It has data/test.jsonl"]);
    server.refuse_rows(&[], "hf:org/other/x.jsonl", &["no data set org/other", "/datasets/org/other"]);
    server.set(|h| _ = h.files.insert("data/train.parquet".into(), Vec::new()));
    server.refuse_rows(&[], "hf:org/set", &["several files", "hf:org/set/FILE", "data/test.jsonl, data/train.parquet"]);
    // Names of files outside are never asked for.
    server.set(|h| h.files = [("../x.jsonl".to_owned(), Vec::new()), ("set.py".to_owned(), Vec::new())].into());
    server.refuse_rows(&[], "hf:org/set", &["no files of rows", "refs/convert/parquet"]);
    server.set(|h| h.token = Some("hf_secret"));
    server.refuse_rows(&[], "hf:org/set", &["this data set without a token", "set HF_TOKEN", "/datasets/org/set"]);
    server.set(|h| h.status = Some(403));
    server.refuse_rows(&[], "hf:org/set", &["no access to this data set", "accept its conditions"]);
    for wrong in ["hf:org/set/run.py", "hf:org/set/../x.json", "hf:"] {
        let error = Reference::data(wrong).unwrap().unwrap_err().to_string();
        assert!(error.contains("not a data set on the hub") && error.contains("hf:org/name/file.parquet"), "{error}");
    }
}

/// Text of a data set is downloaded to be run on.
#[test]
fn texts_on_the_hub() {
    let rows: String = (0..60).map(|i| format!("{{\"text\": \"The heron saw {i} fish and flew away.\"}}\n")).collect();
    let server = Server::with(&[("text/train.jsonl", rows.as_bytes())]);
    let model = common::model::model(&common::model::Shape { layers: 1, ..common::model::DENSE });
    let (path, out) = (model.path().to_str().unwrap(), server.home.path().join("s.st"));
    let data = "hf:org/set/text/train.jsonl";
    let eval = ["eval", path, "--data", data, "--context", "32", "--chunks", "2", "--json", "--quiet"];
    let evaluated = server.quant(&eval);
    assert!(evaluated.status.success(), "{}", String::from_utf8_lossy(&evaluated.stderr));
    let report: serde_json::Value = serde_json::from_slice(&evaluated.stdout).unwrap();
    assert_eq!(report["conditions"]["corpus"], "train.jsonl", "{report:#}");
    let weighted = format!("{data}:0.5");
    let calibrate = ["calibrate", path, "--data", &weighted, "--rows", "2", "--length", "32", "--quiet", "-o"];
    let calibrated = server.quant(&[&calibrate[..], &[out.to_str().unwrap()]].concat());
    assert!(calibrated.status.success() && out.exists(), "{}", String::from_utf8_lossy(&calibrated.stderr));
    let asked = std::mem::take(&mut server.hub.lock().unwrap().log);
    assert_eq!(asked.iter().filter(|l| l.starts_with("GET /datasets/org/set/resolve/")).count(), 1, "{asked:?}");
    let missing = server.quant(&["eval", path, "--data", "hf:org/set/none.jsonl", "--quiet"]);
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(matches!(missing.status.code(), Some(1 | 2)) && said.contains("It has text/train.jsonl"), "{said}");
}

/// A task asks the rows that were downloaded, and knows where those of a public set are.
#[test]
fn tasks_ask_rows_on_the_hub() {
    let row = |i: usize| {
        format!("{{\"passage\": \"The heron saw {i} fish.\", \"question\": \"did it\", \"label\": {}}}\n", i % 2)
    };
    let rows: String = (0..4).map(row).collect();
    let server = Server::with(&[("boolq/validation.jsonl", rows.as_bytes()), ("other.jsonl", b"{}")]);
    let model = common::model::model(&common::model::Shape { layers: 1, ..common::model::DENSE });
    let path = model.path().to_str().unwrap();
    let ask = |suite: &str| server.quant(&["eval", path, "--suite", suite, "--no-text", "--json", "--quiet"]);
    for suite in ["boolq=hf:org/set/boolq/validation.jsonl", "hf:org/set/boolq/validation.jsonl@main"] {
        let out = ask(suite);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(report["tasks"][0]["items"], 4, "{suite}");
    }
    for (suite, words) in [
        ("boolq=hf", &["no data set aps/super_glue", "/datasets/aps/super_glue"][..]),
        ("boolq=hf:aps/super_glue", &["super_glue/boolq/"]),
        ("boolq=hf:org/set", &["several files", "boolq/validation.jsonl"]),
        ("choice=hf", &["where on the hub", "NAME=hf:org/name/FILE"]),
        ("boolq", &["boolq=hf"]),
        ("no=hf", &["unknown task \"no\""]),
    ] {
        let out = ask(suite);
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(matches!(out.status.code(), Some(1 | 2)), "{suite}: {error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{suite}: no {word:?} in:\n{error}"));
    }
    let known = presets::EMBEDDED.iter().filter_map(|(name, _)| File::preset(name).unwrap().hub);
    let known: Vec<Reference> = known.map(|hub| Reference::data(&hub).unwrap().unwrap()).collect();
    assert!(known.len() > 8 && known.iter().all(|set| set.file.is_some()));
    let asked = Reference::data("hf:Rowan/hellaswag@0123abc").unwrap().unwrap().or_file_of(&known[0]);
    assert_eq!(asked.to_string(), "hf:Rowan/hellaswag/data/validation-00000-of-00001.parquet@0123abc");
}
