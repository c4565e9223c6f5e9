//! Task files: a few lines of TOML that say where rows lie and what is asked about each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::check::{self, Judge};
use super::rows::{self, Placed, Row};
use super::{Item, KINDS, Kind, Question, Task, generate, presets, template};
use crate::error::{At, Error, Result};
use crate::eval::probe::{self, Skill, Split};

/// The definition of a task.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub about: String,
    /// Whose set or protocol this is.
    #[serde(default)]
    pub source: String,
    kind: String,
    /// Fields that rows of such a file have: what a bare file of rows is recognised by.
    #[serde(default)]
    pub fields: Vec<String>,
    /// Rows: a file beside this one.
    data: Option<String>,
    /// Rows: skills of `quant probe`.
    #[serde(default)]
    probe: Vec<String>,
    /// About so many characters each, for skills that can be of any length; at each length, the answer at every depth.
    #[serde(default)]
    lengths: Vec<usize>,
    /// An expression: what items are counted by, besides all together.
    group: Option<String>,
    /// Where the rows are published.
    pub published: Option<String>,
    /// The file of the hub that they are usually taken from: `hf:org/name/FILE`.
    pub hub: Option<String>,
    /// Template of the text in front of what is judged.
    prompt: String,
    /// For `choice`: an expression, the list of prompts where each choice has its own; empty where all have one.
    prompts: Option<String>,
    /// For `choice`: an expression, a list of texts; `between` stands in front of each.
    choices: Option<String>,
    #[serde(default)]
    between: String,
    /// An expression: the index of the right choice, or its label among `labels`; or the text to be predicted.
    answer: Option<String>,
    labels: Option<String>,
    /// For `generate`: how what is written is judged.
    check: Option<Check>,
    #[serde(default)]
    stop: Vec<String>,
    /// Tokens that are generated at most.
    #[serde(default = "limit")]
    limit: usize,
    /// The prompt is a message in the model's own chat template.
    #[serde(default)]
    chat: bool,
    /// So many of the first rows stand in front of each prompt, with their answers.
    #[serde(default)]
    shots: usize,
    /// Template of one of them.
    shot: Option<String>,
}

fn limit() -> usize {
    256
}

#[derive(Clone, Debug, Deserialize)]
struct Check {
    kind: String,
    /// Expressions.
    #[serde(flatten)]
    values: BTreeMap<String, String>,
}

impl Check {
    fn check(&self) -> Result<()> {
        let known = check::find(&self.kind).at(|| "kind")?;
        known.takes(self.values.keys().map(String::as_str))?;
        self.values.iter().try_for_each(|(key, e)| template::check_value(e).at(|| key.clone()))
    }
}

/// What a user may change of a task.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// At most so many items, spread evenly over the rows.
    pub items: Option<usize>,
    /// Models' code may be run.
    pub allow_exec: bool,
}

/// Finds a task by what the command line says: `NAME`, `FILE.toml`, `ROWS.jsonl`, or `NAME=ROWS.jsonl`.
///
/// Errors: no such task or file; rows that do not have what the task asks for, with file, line and field.
pub fn load(argument: &str, wishes: &Wishes) -> Result<Task> {
    if let Some((name, path)) = argument.split_once('=') {
        return File::preset(name)?.task(name, Some(Path::new(path)), None, wishes);
    }
    let path = Path::new(argument);
    let stem =
        || path.file_name().unwrap_or_default().to_string_lossy().split('.').next().unwrap_or_default().to_owned();
    match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => {
            let text = std::fs::read_to_string(path).at(|| argument.to_owned())?;
            let task = File::parse(&text).and_then(|file| file.task(&stem(), None, path.parent(), wishes));
            task.at(|| argument.to_owned())
        }
        Some(_) => {
            let rows = rows::read(path)?;
            let (name, file) = recognise(&rows).at(|| argument.to_owned())?;
            let name = if name == stem() { name } else { format!("{name}:{}", stem()) };
            file.items(&name, rows, argument, wishes)
        }
        None => File::preset(argument)?.task(argument, None, None, wishes),
    }
}

/// The bundled task whose fields these rows have: the one that asks for most.
fn recognise(rows: &[Placed]) -> Result<(String, File)> {
    let Some(first) = rows.first() else { return Err(Error::input("it has no rows")) };
    let mut best: Option<(&str, File)> = None;
    for (name, text) in presets::EMBEDDED {
        let file = File::parse(text).at(|| format!("evals/tasks/{name}.toml"))?;
        let fits = !file.fields.is_empty() && file.fields.iter().all(|f| first.row.contains_key(f));
        if fits && best.as_ref().is_none_or(|(_, other)| other.fields.len() < file.fields.len()) {
            best = Some((name, file));
        }
    }
    best.map(|(name, file)| (name.to_owned(), file)).ok_or_else(|| {
        let has: Vec<_> = first.row.keys().map(|k| format!("{k:?}")).take(12).collect();
        Error::input(format!("no bundled task is about rows with the fields {}", has.join(", ")))
            .help("see `quant list tasks` for the fields that are recognised, or write a task file (evals/README.md)")
    })
}

impl File {
    /// Errors: all that can be wrong with it whatever the rows are, by its key.
    pub fn parse(text: &str) -> Result<File> {
        let file: File = toml::from_str(text).map_err(|e| Error::request(e.to_string().trim_end().to_owned()))?;
        file.check().map_err(Error::in_request)?;
        Ok(file)
    }

    fn check(&self) -> Result<()> {
        let kind = self.kind().at(|| "kind")?.name;
        let needed = |key: &str| Error::input(format!("a `{kind}` task needs `{key}`"));
        template::check_text(&self.prompt).at(|| "prompt")?;
        match &self.shot {
            Some(shot) => template::check_text(shot).at(|| "shot")?,
            None if self.shots > 0 => return Err(Error::input("`shots` needs a template `shot`")),
            None => {}
        }
        let expressions: [(&str, &Option<String>, &[&str]); 5] = [
            ("prompts", &self.prompts, &[]),
            ("choices", &self.choices, &["choice"]),
            ("answer", &self.answer, &["choice", "predict"]),
            ("labels", &self.labels, &[]),
            ("group", &self.group, &[]),
        ];
        for (key, expression, needs) in expressions {
            match expression {
                Some(e) => template::check_value(e).at(|| key)?,
                None if needs.contains(&kind) => return Err(needed(key)),
                None => {}
            }
        }
        if self.limit == 0 {
            return Err(Error::input("an answer of 0 tokens cannot be right").at("limit"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input("an empty text stops every answer").at("stop"));
        }
        match &self.check {
            Some(check) => check.check().at(|| "[check]"),
            None if kind == generate::KIND.name => Err(needed("[check]")),
            None => Ok(()),
        }
    }

    /// A bundled one.
    pub fn preset(name: &str) -> Result<File> {
        let found = presets::EMBEDDED.iter().find(|(n, _)| *n == name);
        let (_, text) = found.ok_or_else(|| {
            let known = presets::EMBEDDED.iter().map(|(n, _)| *n);
            let all = "`quant list tasks` has all; or pass a file: TASK.toml, ROWS.jsonl, NAME=ROWS.jsonl";
            Error::unknown("task", name, known, all)
        })?;
        File::parse(text).at(|| format!("evals/tasks/{name}.toml"))
    }

    pub fn kind(&self) -> Result<&'static Kind> {
        KINDS.iter().find(|k| k.name == self.kind).ok_or_else(|| {
            let known: Vec<_> = KINDS.iter().map(|k| k.name).collect();
            Error::input(format!("there is no kind of task {:?}", self.kind))
                .help(format!("one of: {}", known.join(", ")))
        })
    }

    pub fn checks(&self) -> &str {
        self.check.as_ref().map_or("", |c| &c.kind)
    }

    /// Whether it can be run as it is.
    pub fn has_rows(&self) -> bool {
        self.data.is_some() || !self.probe.is_empty()
    }

    fn task(&self, name: &str, rows: Option<&Path>, folder: Option<&Path>, wishes: &Wishes) -> Result<Task> {
        let (rows, at) = match (rows, &self.data, folder) {
            (Some(path), ..) => (rows::read(path)?, path.display().to_string()),
            (None, Some(data), Some(folder)) => {
                let path: PathBuf = folder.join(data);
                (rows::read(&path)?, path.display().to_string())
            }
            (None, Some(data), None) => (presets::rows(data)?, format!("evals/tasks/{data}")),
            (None, None, _) if !self.probe.is_empty() => (self.probed(wishes)?, "quant probe".to_owned()),
            _ => {
                let published = self.published.as_ref().map(|p| format!(", published at {p}")).unwrap_or_default();
                let fetch = match &self.hub {
                    Some(_) => format!("pass {name}=hf to download them, or {name}=ROWS.jsonl (.json, .parquet)"),
                    None => format!("fetch them and pass {name}=ROWS.jsonl (.json, .parquet)"),
                };
                return Err(Error::request(format!("the rows of {name} do not come with quant{published}")).help(fetch));
            }
        };
        self.items(name, rows, &at, wishes)
    }

    /// As many items of each skill as are wanted.
    fn probed(&self, wishes: &Wishes) -> Result<Vec<Placed>> {
        let lengths: Vec<Option<usize>> = match self.lengths.is_empty() {
            true => vec![None],
            false => self.lengths.iter().copied().map(Some).collect(),
        };
        let each = wishes.items.unwrap_or(PROBED).div_ceil(self.probe.len().max(1) * lengths.len());
        let mut out = Vec::new();
        for name in &self.probe {
            for length in &lengths {
                for (i, item) in Skill::find(name)?.items(Split::Test, 0, each, *length)?.iter().enumerate() {
                    let place = format!("{name}{} {}", length.map_or_else(String::new, |l| format!(" of {l}")), i + 1);
                    let Ok(Value::Object(mut row)) = serde_json::to_value(item) else { continue };
                    row.insert("length".into(), item.prompt.len().into());
                    row.insert("asked".into(), (*length).into());
                    row.insert("depth".into(), depth(item).into());
                    out.push(Placed { row, place });
                }
            }
        }
        Ok(out)
    }

    fn items(&self, name: &str, all: Vec<Placed>, at: &str, wishes: &Wishes) -> Result<Task> {
        let kind = self.kind()?;
        if self.shots >= all.len() {
            return Err(Error::input(format!(
                "{} rows are too few for {} examples in front of each",
                all.len(),
                self.shots
            ))
            .at(at.to_owned()));
        }
        let shots = self.front(&all[..self.shots]).at(|| at.to_owned())?;
        let rest = &all[self.shots..];
        let count = wishes.items.unwrap_or(rest.len()).min(rest.len());
        let chosen = (0..count).map(|i| &rest[i * rest.len() / count.max(1)]);
        let items: Vec<Item> = chosen
            .map(|placed| {
                let question = self.question(kind, &placed.row, &shots, wishes);
                let question = question.at(|| placed.place.clone()).at(|| at.to_owned())?;
                let group = self.group.as_ref().map(|e| template::value(e, &placed.row)).transpose();
                let group = group.at(|| "group").at(|| placed.place.clone()).at(|| at.to_owned())?;
                Ok(Item { id: id(placed), question, group: group.as_ref().map(shown) })
            })
            .collect::<Result<_>>()?;
        if items.is_empty() {
            return Err(Error::request("no items were asked for").at(name.to_owned()));
        }
        let check = self.check.as_ref().map(|c| c.kind.clone());
        Ok(Task { name: name.to_owned(), about: self.about.clone(), kind, check, items })
    }

    fn front(&self, rows: &[Placed]) -> Result<String> {
        let mut out = String::new();
        for placed in rows {
            let template = self.shot.as_deref().ok_or_else(|| Error::input("`shots` needs a template `shot`"))?;
            out.push_str(&template::text(template, &placed.row).at(|| placed.place.clone())?);
        }
        Ok(out)
    }

    fn question(&self, kind: &Kind, row: &Row, shots: &str, wishes: &Wishes) -> Result<Question> {
        let prompt = format!("{shots}{}", template::text(&self.prompt, row).at(|| "prompt")?);
        match kind.name {
            "choice" => self.choice(prompt, row),
            "predict" => {
                let answer = self.answer(row)?;
                let answer = answer.as_str().filter(|a| !a.is_empty());
                let answer = answer.ok_or_else(|| Error::input("`answer` is no text, or an empty one"))?;
                Ok(Question::Predict { prompt, answer: answer.to_owned() })
            }
            _ => {
                let check = self.check.as_ref().ok_or_else(|| Error::input("a `generate` task needs a [check]"))?;
                let values =
                    check.values.iter().map(|(key, e)| Ok((key.clone(), template::value(e, row).at(|| key.clone())?)));
                let mut values: Row = values.collect::<Result<_>>()?;
                values.retain(|_, value| !value.is_null());
                let judge: Judge = check::find(&check.kind)?.judge(&values, wishes.allow_exec)?;
                let expected = values.get("answer").map(shown).unwrap_or_default();
                let (stop, limit) = (self.stop.clone(), self.limit);
                Ok(Question::Generate { prompt, chat: self.chat, stop, limit, expected, judge })
            }
        }
    }

    fn choice(&self, prompt: String, row: &Row) -> Result<Question> {
        let list = |name: &str, expression: &Option<String>| -> Result<Vec<String>> {
            let Some(e) = expression else { return Err(Error::input(format!("a `choice` task needs `{name}`"))) };
            let texts =
                |v: Value| v.as_array()?.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            let found = template::value(e, row).at(|| name.to_owned())?;
            texts(found).ok_or_else(|| Error::input(format!("`{name}` is no list of texts")))
        };
        let choices = list("choices", &self.choices)?;
        let own = if self.prompts.is_some() { list("prompts", &self.prompts)? } else { Vec::new() };
        let prompts = if own.is_empty() { vec![prompt; choices.len()] } else { own };
        if choices.len() < 2 || prompts.len() != choices.len() {
            let (p, c) = (prompts.len(), choices.len());
            return Err(Error::input(format!("{c} choices and {p} prompts: at least two, and as many of each")));
        }
        if let Some(empty) = choices.iter().position(|c| c.trim().is_empty()) {
            return Err(Error::input(format!("choice {empty} is empty")).at("choices"));
        }
        let answer = self.answer(row)?;
        let label = match &self.labels {
            Some(_) => list("labels", &self.labels)?.iter().position(|l| *l == shown(&answer)),
            None => answer.as_u64().or_else(|| answer.as_str()?.trim().parse().ok()).map(|n| n as usize),
        };
        let gold = label.filter(|gold| *gold < choices.len()).ok_or_else(|| {
            Error::input(format!("{} names none of the {} choices", shown(&answer), choices.len())).at("answer")
        })?;
        let between = &self.between;
        let choices = choices.into_iter().map(|c| format!("{between}{c}")).collect();
        Ok(Question::Choice { prompts, choices, gold })
    }

    fn answer(&self, row: &Row) -> Result<Value> {
        let e = self.answer.as_ref().ok_or_else(|| Error::input(format!("a `{}` task needs `answer`", self.kind)))?;
        template::value(e, row).at(|| "answer")
    }
}

/// Which quarter of the prompt the answer's first line stands in, where it does.
fn depth(item: &probe::Item) -> Option<&'static str> {
    let first = item.answer.lines().next().filter(|line| !line.is_empty())?;
    let quarter = item.prompt.find(first)? * 4 / item.prompt.len().max(1);
    ["at 0-25 %", "at 25-50 %", "at 50-75 %", "at 75-100 %"].get(quarter).copied()
}

/// Items of `probe` unless the user says how many.
const PROBED: usize = 200;

/// A value as people would write it.
pub fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The row's own name, or its place.
fn id(placed: &Placed) -> String {
    let named = ["id", "task_id", "key", "ind"].iter().find_map(|k| placed.row.get(*k));
    named.map_or_else(|| placed.place.clone(), shown)
}
