use super::*;

const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {step: one}\n";
const OTHER: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: bank\n";
const BROKEN: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: [oops\n";

struct Fixture {
    home: tempfile::TempDir,
    directory: Directory,
    /// What all changes come to.
    objects: BTreeMap<ObjectKey, SharedObject>,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("config/sub")).unwrap();
        let directory = Self::open(home.path());
        Self { home, directory, objects: BTreeMap::new() }
    }

    fn open(home: &Path) -> Directory {
        Directory::new(home.join("config"), home.join("last-good.json"))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.home.path().join("config").join(name), text).unwrap();
    }

    fn read(&mut self) -> (Vec<String>, usize) {
        let loaded = self.directory.read(&Touched::Anything).unwrap();
        self.take(loaded)
    }

    fn take(&mut self, loaded: Loaded) -> (Vec<String>, usize) {
        for ObjectChange { key, object } in loaded.changes {
            match object {
                Some(object) => drop(self.objects.insert(key, object)),
                None => drop(self.objects.remove(&key)),
            }
        }
        assert_eq!(loaded.objects, self.objects.len());
        let mut names: Vec<_> = self.objects.keys().map(|key| key.name.clone()).collect();
        names.sort();
        (names, loaded.errors.len())
    }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn finds_manifests_below_and_nothing_else() {
    let mut fixture = Fixture::new();
    fixture.write("sub/a.yaml", GOOD);
    fixture.write("b.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"bank"}}"#);
    fixture.write(".c.yaml", "broken: [");
    fixture.write("readme.md", "broken: [");
    assert_eq!(fixture.read(), (names(&["bank", "shop"]), 0));
}

#[test]
fn a_broken_object_stays_as_it_was_and_its_neighbours_move_on() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    assert_eq!(fixture.read(), (names(&["shop"]), 0));
    fixture.write("a.yaml", &format!("{BROKEN}---\n{OTHER}"));
    let (found, errors) = fixture.read();
    assert_eq!(found, names(&["bank", "shop"]));
    assert!(errors >= 1);
    fixture.write("a.yaml", OTHER);
    assert_eq!(fixture.read(), (names(&["bank"]), 0));
}

#[test]
fn the_last_good_state_survives_a_restart() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    fixture.read();
    fixture.write("a.yaml", BROKEN);
    fixture.read();
    fixture.directory = Fixture::open(fixture.home.path());
    fixture.objects.clear();
    assert_eq!(fixture.read().0, names(&["shop"]));
    fixture.write("a.yaml", OTHER);
    assert_eq!(fixture.read(), (names(&["bank"]), 0));
    assert!(!fixture.home.path().join("last-good.json").exists());
}

#[test]
fn a_file_that_is_being_rewritten_forgets_nothing() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    fixture.read();
    fixture.write("a.yaml", "");
    assert_eq!(fixture.read(), (names(&["shop"]), 1));
    fixture.write("a.yaml", OTHER);
    assert_eq!(fixture.read(), (names(&["bank"]), 0));
}

#[test]
fn a_removed_file_takes_its_objects_along_broken_or_not() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    fixture.read();
    fixture.write("a.yaml", BROKEN);
    fixture.read();
    fs::remove_file(fixture.home.path().join("config/a.yaml")).unwrap();
    assert_eq!(fixture.read(), (names(&[]), 0));
}

#[test]
fn the_same_object_in_two_files_is_reported() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    fixture.write("b.yaml", GOOD);
    let loaded = fixture.directory.read(&Touched::Anything).unwrap();
    assert_eq!(loaded.objects, 1);
    assert!(loaded.errors[0].problem.contains("a.yaml:1"), "{}", loaded.errors[0]);
    assert!(loaded.errors[0].file.ends_with("b.yaml"));
    fs::remove_file(fixture.home.path().join("config/a.yaml")).unwrap();
    let loaded = fixture.directory.read(&Touched::Anything).unwrap();
    assert_eq!((loaded.objects, loaded.errors.len()), (1, 0));
    assert!(loaded.changes[0].object.as_ref().unwrap().file.ends_with("b.yaml"));
}

#[test]
fn only_what_was_touched_is_read_and_only_what_changed_is_told() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &format!("{GOOD}---\n{OTHER}"));
    fixture.write("b.yaml", &GOOD.replace("shop", "ops"));
    assert_eq!(fixture.read(), (names(&["bank", "ops", "shop"]), 0));
    fixture.write("a.yaml", &format!("{}---\n{OTHER}", GOOD.replace("one", "two")));
    fixture.write("b.yaml", &GOOD.replace("shop", "dev"));
    let touched = Touched::Files([fixture.home.path().join("config/a.yaml")].into());
    let loaded = fixture.directory.read(&touched).unwrap();
    let told: Vec<_> = loaded.changes.iter().map(|change| change.key.name.clone()).collect();
    assert_eq!(told, ["shop"]);
    fixture.take(loaded);
    assert_eq!(fixture.read(), (names(&["bank", "dev", "shop"]), 0));
}

#[test]
fn an_unreadable_file_is_reported() {
    let mut fixture = Fixture::new();
    fs::write(fixture.home.path().join("config/a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let loaded = fixture.directory.read(&Touched::Anything).unwrap();
    assert_eq!((loaded.objects, loaded.errors.len()), (0, 1));
}

#[test]
fn a_vanished_directory_is_an_error_and_forgets_nothing() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    fixture.read();
    let (config, away) = (fixture.home.path().join("config"), fixture.home.path().join("away"));
    fs::rename(&config, &away).unwrap();
    assert!(fixture.directory.read(&Touched::Anything).is_err());
    fs::rename(&away, &config).unwrap();
    fixture.write("a.yaml", BROKEN);
    assert_eq!(fixture.read().0, names(&["shop"]));
}
