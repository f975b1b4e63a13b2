//! The plugin on a node: its program among the other plugins, its entry in the network list, and a record of
//! both.
//!
//! The network list is the primary CNI plugin's, which may replace it at any time; [`Record::chain`] puts our
//! entry in again. The record says that this is wanted: without it nothing is put in, so that whoever removes
//! the plugin is not undone by an agent that still runs.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::conflist::{self, Refused};
use crate::{SOCKET, STATE, TYPE, state};

/// Name of the record in the state directory.
const RECORD: &str = "cni-installed.json";

/// The files that runtimes read as configurations, by the ends of their names (libcni, `ConfFiles`).
const CONFIGURATIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Who writes the same file at the same time is waited for this often.
const ATTEMPTS: usize = 5;

/// A file of ours that is not finished yet. Its end is none of [`CONFIGURATIONS`].
const FRESH: &str = ".nodemesh-cni-new";

/// Where the plugin was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The runtime's directory of plugins.
    pub bin_dir: PathBuf,
    /// Its directory of network lists.
    pub conf_dir: PathBuf,
    /// Our entry in the list.
    pub entry: String,
}

/// Why the plugin is not, or not yet, in place.
#[derive(Debug)]
pub enum Error {
    /// There is no network list. The primary CNI plugin may not have written it yet.
    NoNetwork(PathBuf),
    /// The network that the runtime takes is configured in a way that we can't be put into.
    Refused(PathBuf, Refused),
    /// The network list is a symbolic link: what it leads to may be out of reach, and may be others' as well.
    Link(PathBuf),
    /// A file can't be read or written.
    Io(PathBuf, io::Error),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNetwork(path) => write!(f, "{}: no network configuration yet", path.display()),
            Self::Refused(path, Refused::NoNetwork(why)) => write!(f, "{}: {why}", path.display()),
            Self::Refused(path, Refused::Single) => write!(
                f,
                "{}: configures one plugin; a plugin can be chained into a list (.conflist) only. Have the primary CNI \
                 plugin write one, or install without the CNI plugin (agent.cni.enabled=false)",
                path.display()
            ),
            Self::Refused(path, Refused::Version(version)) => {
                write!(f, "{}: version {version:?} of CNI is not supported", path.display())
            }
            Self::Link(path) => write!(f, "{}: a symbolic link is not followed", path.display()),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Io(path, error)
}

impl Record {
    /// A plugin in these directories, which asks the agent with this run directory and decides by what that
    /// keeps in the state directory.
    pub fn new(bin_dir: &Path, conf_dir: &Path, state_dir: &Path, run_dir: &Path) -> Self {
        let entry =
            json!({"type": TYPE, "socket": run_dir.join(SOCKET), "state": state_dir.join(STATE)}).to_string();
        Self { bin_dir: bin_dir.to_owned(), conf_dir: conf_dir.to_owned(), entry }
    }

    /// The record in a state directory; none if the plugin is not installed.
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join(RECORD)).ok()?).ok()
    }

    /// Installs the plugin: its program, then the record. What was installed elsewhere before goes.
    /// [`Self::chain`] is what remains to be done.
    pub fn install(&self, state_dir: &Path, program: &Path) -> Result<(), Error> {
        if let Some(before) = Self::read(state_dir)
            && (&before.bin_dir, &before.conf_dir) != (&self.bin_dir, &self.conf_dir)
        {
            before.take_away()?;
        }
        let target = self.bin_dir.join(TYPE);
        let content = fs::read(program).map_err(at(program))?;
        if fs::read(&target).ok().as_ref() != Some(&content) {
            replace(&target, &content, 0o755).map_err(at(&target))?;
        }
        let path = state_dir.join(RECORD);
        let text = serde_json::to_vec(self).unwrap_or_default();
        replace(&path, &text, 0o600).map_err(at(&path))
    }

    /// Puts our entry into the network list that the runtime takes, and takes it out of others. Says whether
    /// anything was changed. Errors: it is not in, and why.
    pub fn chain(&self) -> Result<bool, Error> {
        let mut changed = false;
        let mut first = None;
        for path in configurations(&self.conf_dir).map_err(at(&self.conf_dir))? {
            if first.is_some() {
                changed |= edit(&path, |text| Ok(conflist::unchain(text)))?;
                continue;
            }
            let is_list = path.extension().is_some_and(|end| end == "conflist");
            match edit(&path, |text| if is_list { conflist::chain(text, &self.entry) } else { single(text) })
            {
                // The runtime takes the first that is one.
                Err(Error::Refused(_, Refused::NoNetwork(_))) => {}
                result => {
                    changed |= result?;
                    first = Some(path);
                }
            }
        }
        if first.is_some() { Ok(changed) } else { Err(Error::NoNetwork(self.conf_dir.clone())) }
    }

    /// Takes our entry out of every network list, and then the program away.
    fn take_away(&self) -> Result<(), Error> {
        for path in configurations(&self.conf_dir).map_err(at(&self.conf_dir))? {
            edit(&path, |text| Ok(conflist::unchain(text)))?;
        }
        let program = self.bin_dir.join(TYPE);
        gone(fs::remove_file(&program)).map_err(at(&program))
    }
}

/// Removes the plugin that the record of a state directory tells of, and what it decided by. Nothing if there
/// is none.
pub fn remove(state_dir: &Path) -> Result<(), Error> {
    let record = Record::read(state_dir);
    // First: from here on no agent puts it in again.
    let path = state_dir.join(RECORD);
    gone(fs::remove_file(&path)).map_err(at(&path))?;
    if let Some(record) = record
        && let Err(error) = record.take_away()
    {
        // So that it can be tried again.
        let text = serde_json::to_vec(&record).unwrap_or_default();
        replace(&path, &text, 0o600).map_err(at(&path))?;
        return Err(error);
    }
    let state = state_dir.join(STATE);
    for path in [state::before(&state), state] {
        gone(fs::remove_file(&path)).map_err(at(&path))?;
    }
    Ok(())
}

/// Writes a file anew: who reads it finds the old content or the new one. Errors: the old one stays.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let fresh = fresh(path);
    write(&fresh, content, mode)?;
    fs::rename(&fresh, path)
}

fn fresh(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{FRESH}", std::process::id()));
    name.into()
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // A umask has no say.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Configurations in the order in which runtimes look at them.
fn configurations(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
        if CONFIGURATIONS.contains(&end) && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A file that is no list has one plugin, or is nothing.
fn single(text: &str) -> Result<Option<String>, Refused> {
    // A list under such a name is no network to a runtime.
    match conflist::chain(text, "{}") {
        Err(refused) => Err(refused),
        Ok(_) => Err(Refused::NoNetwork("a list whose name does not end in .conflist".to_owned())),
    }
}

/// Changes a file as `change` says, if it says anything. If somebody else writes it meanwhile, what they
/// wrote is what is changed.
fn edit(path: &Path, change: impl Fn(&str) -> Result<Option<String>, Refused>) -> Result<bool, Error> {
    let metadata = fs::symlink_metadata(path).map_err(at(path))?;
    let mut text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
        result => result.map_err(at(path))?,
    };
    let mut changed = false;
    for _ in 0..ATTEMPTS {
        let wanted = change(&text).map_err(|refused| Error::Refused(path.to_owned(), refused))?;
        let Some(wanted) = wanted else { return Ok(changed) };
        if metadata.is_symlink() {
            return Err(Error::Link(path.to_owned()));
        }
        let found = exchange(path, &wanted, metadata.mode() & 0o777).map_err(at(path))?;
        changed = true;
        if found == text {
            return Ok(true);
        }
        text = found;
    }
    Err(Error::Io(path.to_owned(), io::Error::other("others keep writing it")))
}

/// Puts a file into the place of another at once, and says what that had in it.
fn exchange(path: &Path, content: &str, mode: u32) -> io::Result<String> {
    let fresh = fresh(path);
    write(&fresh, content.as_bytes(), mode)?;
    let exchanged = renameat_with(CWD, &fresh, CWD, path, RenameFlags::EXCHANGE);
    let found = exchanged.map_err(io::Error::from).and_then(|()| fs::read_to_string(&fresh));
    fs::remove_file(&fresh)?;
    // The names as well as the contents survive a loss of power.
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
    found
}

#[cfg(test)]
mod tests;
