use super::*;

const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {step: one}\n";
const OTHER: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: bank\n";
const BROKEN: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: [oops\n";

struct Fixture {
    home: tempfile::TempDir,
    directory: Directory,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("config/sub")).unwrap();
        let directory = Self::open(home.path());
        Self { home, directory }
    }

    fn open(home: &Path) -> Directory {
        Directory::new(home.join("config"), home.join("last-good.json"))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.home.path().join("config").join(name), text).unwrap();
    }

    fn read(&mut self) -> (Vec<String>, usize) {
        let loaded = self.directory.read().unwrap();
        let mut names: Vec<_> =
            loaded.objects.iter().map(|object| object.value.metadata().name.clone()).collect();
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
    let loaded = fixture.directory.read().unwrap();
    assert_eq!(loaded.objects.len(), 1);
    assert!(loaded.errors[0].problem.contains("a.yaml:1"), "{}", loaded.errors[0]);
    assert!(loaded.errors[0].file.ends_with("b.yaml"));
}

#[test]
fn an_unreadable_file_is_reported() {
    let mut fixture = Fixture::new();
    fs::write(fixture.home.path().join("config/a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let loaded = fixture.directory.read().unwrap();
    assert_eq!((loaded.objects.len(), loaded.errors.len()), (0, 1));
}

#[test]
fn a_vanished_directory_is_an_error_and_forgets_nothing() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", GOOD);
    fixture.read();
    let (config, away) = (fixture.home.path().join("config"), fixture.home.path().join("away"));
    fs::rename(&config, &away).unwrap();
    assert!(fixture.directory.read().is_err());
    fs::rename(&away, &config).unwrap();
    fixture.write("a.yaml", BROKEN);
    assert_eq!(fixture.read().0, names(&["shop"]));
}
