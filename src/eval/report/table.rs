//! Tables as the page's template sets them.

use serde::Serialize;

use super::number::align;

#[derive(Serialize)]
pub struct Table {
    pub id: String,
    pub caption: String,
    heads: Vec<Head>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Head {
    text: String,
    /// The entry of the glossary.
    term: Option<&'static str>,
    numeric: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// What stands before the name.
    mark: &'static str,
    /// Opens a block of rows of this title.
    block: Option<String>,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    class: String,
}

impl Table {
    /// `names`: what the rows are of.
    pub fn new(id: &str, caption: impl Into<String>, head: &str, names: Vec<String>) -> Table {
        let row = |name| Row { name, mark: "", block: None, cells: Vec::new() };
        let head = Head { text: head.to_owned(), term: None, numeric: false };
        let rows = names.into_iter().map(row).collect();
        Table { id: id.to_owned(), caption: caption.into(), heads: vec![head], rows }
    }

    /// Numbers, aligned at their points.
    pub fn numbers(&mut self, head: impl Into<String>, term: Option<&'static str>, mut texts: Vec<String>) {
        align(&mut texts);
        self.column(head.into(), term, texts, "n");
    }

    pub fn words(&mut self, head: impl Into<String>, term: Option<&'static str>, texts: Vec<String>) {
        self.column(head.into(), term, texts, "");
    }

    fn column(&mut self, text: String, term: Option<&'static str>, texts: Vec<String>, class: &str) {
        if texts.iter().all(String::is_empty) {
            return;
        }
        self.heads.push(Head { text, term, numeric: class == "n" });
        for (row, text) in self.rows.iter_mut().zip(texts) {
            row.cells.push(Cell { text, class: class.to_owned() });
        }
    }

    /// Gives cells of the last column a further class each.
    pub fn classes(&mut self, classes: impl IntoIterator<Item = String>) {
        for (row, class) in self.rows.iter_mut().zip(classes) {
            if let Some(cell) = row.cells.last_mut() {
                cell.class = format!("{} {class}", cell.class).trim().to_owned();
            }
        }
    }

    /// Marks the smallest of at least two values, and what is printed like it, in the last column.
    pub fn best(&mut self, values: &[Option<f64>]) {
        let least = |(i, v): (usize, &Option<f64>)| Some((i, (*v)?));
        let found = values.iter().enumerate().filter_map(least).min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((best, _)) = found.filter(|_| values.iter().flatten().count() > 1) else { return };
        let text = self.rows[best].cells.last().map(|c| c.text.clone());
        let same =
            self.rows.iter().zip(values).map(|(r, v)| v.is_some() && r.cells.last().map(|c| &c.text) == text.as_ref());
        let classes: Vec<String> = same.map(|best| if best { "best".to_owned() } else { String::new() }).collect();
        self.classes(classes);
    }

    pub fn marks(&mut self, marks: impl IntoIterator<Item = &'static str>) {
        self.rows.iter_mut().zip(marks).for_each(|(row, mark)| row.mark = mark);
    }

    pub fn block(&mut self, row: usize, title: String) {
        self.rows[row].block = Some(title);
    }

    pub fn terms(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.heads.iter().filter_map(|h| h.term)
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() || self.heads.len() < 2
    }
}
