//! Notices when the configuration is another than the one in use (behaviour.md 8.10).

use std::{fs, path::PathBuf, time::Duration};

use tokio::time;

/// How often the files are read: they are small, and the kubelet takes a minute to bring a changed ConfigMap anyway.
const LOOK: Duration = Duration::from_secs(5);

/// Files and what they held.
#[derive(Debug)]
pub struct Watch(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Watch {
    /// Notes what the files hold. To be made before they are read for use: what changes in between is another start, not lost.
    pub fn new<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let note = |file: &PathBuf| (file.clone(), fs::read(file).ok());
        Self(files.into_iter().map(note).collect())
    }

    /// Waits until one of the files holds something else, and returns its path. A file that is away for a moment, as one is that
    /// an editor replaces, is the same until it is there again.
    pub async fn changed(self) -> PathBuf {
        loop {
            time::sleep(LOOK).await;
            for (file, content) in &self.0 {
                let now = tokio::fs::read(file).await.ok();
                if now.is_some() && now != *content {
                    return file.clone();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour.md 8.10
    #[tokio::test(start_paused = true)]
    async fn rule_8_10_a_changed_file_is_noticed_and_an_absent_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["one", "two"].map(|name| directory.path().join(name));
        for file in &files {
            fs::write(file, "before").unwrap();
        }
        let watch = tokio::spawn(Watch::new(&files).changed());
        let waits = || async {
            time::sleep(3 * LOOK).await;
            !watch.is_finished()
        };
        assert!(waits().await);
        fs::remove_file(&files[1]).unwrap();
        assert!(waits().await, "an absent file is no change");
        fs::write(&files[1], "before").unwrap();
        assert!(waits().await, "the same content is no change");
        fs::write(&files[1], "after").unwrap();
        assert_eq!(watch.await.unwrap(), files[1]);
    }
}
