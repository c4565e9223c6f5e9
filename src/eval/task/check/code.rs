//! Programs that models write, run against tests: only where the user allows it.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Check, Judge, flag, string};
use crate::error::{Error, Result};
use crate::eval::task::rows::Row;

pub const CHECK: Check = Check {
    name: "code",
    about: "Python: `before`, what was written and `after` run without an error (HumanEval, MBPP); `fenced`: take the first code block",
    needs: &["after"],
    takes: &["before", "fenced"],
    executes: true,
    prepare,
};

/// What a program may use.
const SECONDS: u64 = 10;
const MEMORY: u64 = 1 << 30;
const FILE: u64 = 1 << 20;

fn prepare(values: &Row) -> Result<Judge> {
    let (before, after, fenced) = (string(values, "before")?, string(values, "after")?, flag(values, "fenced")?);
    Ok(Box::new(move |said| {
        let said = if fenced { block(said) } else { said };
        runs(&format!("{before}{said}\n{after}\n"))
    }))
}

/// The first block between code fences, or all.
fn block(text: &str) -> &str {
    let Some((_, rest)) = text.split_once("```") else { return text };
    let rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    rest.split_once("```").map_or(rest, |(code, _)| code)
}

/// Whether a Python program ends by itself, in time and without an error.
///
/// Errors: no Python; a system that cannot keep the program from the network.
fn runs(program: &str) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("program.py");
    std::fs::File::create(&path)?.write_all(program.as_bytes())?;
    let mut command = Command::new("python3");
    command.arg("-I").arg(&path).current_dir(folder.path()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    confine(&mut command)?;
    let mut child = command.spawn().map_err(|e| {
        Error::from(e)
            .at("python3")
            .help("running models' code needs python3, and a Linux kernel that lets users make namespaces")
    })?;
    let done = wait(&mut child, Duration::from_secs(SECONDS + 2));
    stop(&mut child);
    done
}

#[cfg(target_os = "linux")]
fn confine(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;

    command.process_group(0);
    let limits = [
        (libc::RLIMIT_CPU, SECONDS),
        (libc::RLIMIT_AS, MEMORY),
        (libc::RLIMIT_FSIZE, FILE),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_NOFILE, 64),
    ];
    let confine = move || {
        // SAFETY: system calls alone, on values that were made before the fork; nothing is allocated or locked.
        unsafe {
            // A namespace of its own has no network, not even the machine's own addresses.
            if libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            for (what, most) in limits {
                let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
                if libc::setrlimit(what, &limit) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls that are allowed between fork and exec.
    unsafe { command.pre_exec(confine) };
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn confine(_: &mut Command) -> Result<()> {
    Err(Error::unsupported("models' code is run on Linux only, where it can be kept from the network"))
}

/// Errors are read to the end while the program runs, or it would wait for a reader.
fn wait(child: &mut Child, most: Duration) -> Result<bool> {
    let stderr = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut sink = [0; 4096];
        let mut from = stderr;
        while from.as_mut().is_some_and(|f| f.read(&mut sink).is_ok_and(|n| n > 0)) {}
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if start.elapsed() > most => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_none() {
        stop(child);
    }
    drop(reader); // what the program started may hold the pipe; its group is stopped by the caller
    Ok(status.is_some_and(|s| s.success()))
}

/// The program, and what it started.
fn stop(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: a signal to a process group that this program made; it touches no memory.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_between_fences() {
        assert_eq!(block("Sure:\n```python\nx = 1\n```\nDone"), "x = 1\n");
        assert_eq!(block("x = 1"), "x = 1");
        assert_eq!(block("```python\nx = 1"), "x = 1");
    }
}
