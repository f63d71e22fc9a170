//! Notices when the configuration is another than the one in use (behaviour.md 8.10).

use std::{path::PathBuf, time::Duration};

use tokio::{fs, time};

/// How often the files are read: they are small, and the kubelet takes a minute to bring a changed ConfigMap anyway.
const LOOK: Duration = Duration::from_secs(5);

/// Waits until one of these files holds something else than now, and returns its path. A file that is away for a moment, as one
/// is that an editor replaces, is the same until it is there again.
pub async fn changed(files: Vec<PathBuf>) -> PathBuf {
    let mut known = Vec::new();
    for file in files {
        let content = fs::read(&file).await.ok();
        known.push((file, content));
    }
    loop {
        time::sleep(LOOK).await;
        for (file, content) in &known {
            let now = fs::read(file).await.ok();
            if now.is_some() && now != *content {
                return file.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// behaviour.md 8.10
    #[tokio::test(start_paused = true)]
    async fn rule_8_10_a_changed_file_is_noticed_and_an_absent_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["one", "two"].map(|name| directory.path().join(name));
        for file in &files {
            fs::write(file, "before").unwrap();
        }
        let watch = tokio::spawn(changed(files.to_vec()));
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
