//! The house rules that a compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module may use those in its own group and to the left.
const LAYERS: &[&[&str]] = &[
    &["error", "metadata", "nearest", "tensor", "widest"],
    &["codec"],
    &["arch"],
    &["container"],
    &["recipe"],
    &["device"],
    &["engine"],
    &["calibrate", "eval"],
    &["convert"],
    &["allocate"],
    &["cli"],
];

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// (path relative to src, top module, text) of every source file.
fn modules() -> Vec<(String, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&src)
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/");
            let module = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            (relative, module, fs::read_to_string(&path).unwrap())
        })
        .filter(|(_, module, _)| module != "main" && module != "lib")
        .collect()
}

/// The code without comments, up to its unit tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).filter(|l| !l.trim_start().starts_with("//"))
}

#[test]
fn modules_use_only_what_stands_to_their_left() {
    let mut wrong = Vec::new();
    for (file, module, text) in modules() {
        let own = rank(&module).unwrap_or_else(|| panic!("{file}: module {module} has no place in LAYERS"));
        for line in code(&text) {
            for used in line.split("crate::").skip(1) {
                let names = used.strip_prefix('{').unwrap_or(used).split('}').next().unwrap();
                let names: Vec<&str> = if used.starts_with('{') { names.split(',').collect() } else { vec![names] };
                for name in names {
                    let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if rank(&name).is_some_and(|r| r > own) {
                        wrong.push(format!("{file} uses {name}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_reporter_prints() {
    let printing: Vec<_> = modules()
        .into_iter()
        .filter(|(file, _, text)| {
            file != "cli/report.rs" && code(text).any(|l| ["println!", "print!(", "dbg!"].iter().any(|p| l.contains(p)))
        })
        .map(|(file, ..)| file)
        .collect();
    assert!(printing.is_empty(), "{printing:?}");
}

#[test]
fn format_names_stand_in_the_codec_table_and_in_recipes_only() {
    let dense = ["f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64"];
    let names: Vec<_> = quant::codec::all().map(|c| c.name()).filter(|n| !dense.contains(n)).collect();
    assert!(names.len() > 20);
    for (file, module, text) in modules() {
        // recipe/presets.rs lists the files of recipes/.
        if module == "codec" || file == "recipe/presets.rs" {
            continue;
        }
        for line in code(&text) {
            for name in &names {
                assert!(!line.contains(&format!("\"{name}\"")), "{file} names the format {name}: {line}");
            }
        }
    }
}

#[test]
fn unsafe_code_says_why_it_is_safe() {
    for (file, _, text) in modules() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            // Types of functions do nothing by themselves.
            if code.contains("unsafe ") && !code.contains("unsafe fn") && !code.contains("unsafe extern") {
                let before = &lines[i.saturating_sub(8)..=i];
                assert!(before.iter().any(|l| l.contains("SAFETY")), "{file}:{}: {line}", i + 1);
            }
        }
    }
}
