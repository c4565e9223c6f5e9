//! When may asking stop? As soon as every budget on a task's change is decided, one way or the other.

use super::budget::{Budgets, Limit, Unit};
use crate::error::{Error, Result};
use crate::eval::paired::Paired;
use crate::eval::task::Task;

/// What must be decided.
#[derive(Debug)]
pub struct Early {
    /// Budgets on changes of tasks: `tasks.NAME.METRIC`.
    limits: Vec<(String, Limit)>,
    /// For the first metric of tasks without any.
    otherwise: Option<Limit>,
}

impl Early {
    /// `points`: the loss that is to be decided on where no budget says.
    ///
    /// Errors: a task that nothing says of; budgets whose intervals do not bear being looked at again and again.
    pub fn new(points: Option<f64>, budgets: Option<&Budgets>, tasks: &[Task]) -> Result<Early> {
        let of_tasks = |(metric, _): &&(String, Limit)| metric.starts_with("tasks.");
        let own = budgets.map_or(&[][..], |b| &b.budgets).iter().filter(of_tasks);
        let since = budgets.map_or(&[][..], |b| &b.since).iter().filter(of_tasks);
        if let Some((metric, limit)) = own.clone().filter(|(_, l)| l.unit == Unit::Own).chain(since).next() {
            let what =
                format!("{metric} = \"{limit}\" cannot be judged on a part of the items that depends on the answers");
            return Err(Error::request(what).help(
                "under [budgets] write a change against the reference, such as \">= -2 pt\"; or drop --until-decided",
            ));
        }
        let otherwise = points.map(|number| Limit { at_most: false, number: -number, unit: Unit::Points });
        let early = Early { limits: own.cloned().collect(), otherwise };
        match tasks.iter().find(|t| early.of(&t.name, t.kind.metrics).is_empty()) {
            Some(task) => {
                Err(Error::request(format!("nothing says what is to be decided of {}", task.name)).help(format!(
                    "pass --until-decided=2 (a loss of 2 points), or a gate with \"tasks.{}.{}\" = \">= -2 pt\"",
                    task.name, task.kind.metrics[0]
                )))
            }
            None => Ok(early),
        }
    }

    /// Limits of a task, and which of its metrics they are on.
    fn of(&self, task: &str, metrics: &[&str]) -> Vec<(usize, Limit)> {
        let named = |(i, metric): (usize, &&str)| {
            let name = format!("tasks.{task}.{metric}");
            self.limits.iter().filter(move |(m, _)| *m == name).map(move |(_, limit)| (i, *limit))
        };
        let found: Vec<_> = metrics.iter().enumerate().flat_map(named).collect();
        match found.is_empty() {
            true => self.otherwise.iter().map(|limit| (0, *limit)).collect(),
            false => found,
        }
    }

    /// Whether all is decided of a task; `change` is what is known of a metric of one artifact.
    pub fn decided(&self, task: &Task, change: impl Fn(usize) -> Option<Paired>) -> bool {
        let decided =
            |(metric, limit): (usize, Limit)| change(metric).is_some_and(|p| limit.keeps(p.low) == limit.keeps(p.high));
        self.of(&task.name, task.kind.metrics).into_iter().all(decided)
    }
}
