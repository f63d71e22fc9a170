use super::*;

/// A trie of addresses, which has no look-up that removes: as hashes hadn't before Linux 5.14.
fn trie() -> BytesMap {
    const LPM_TRIE: u32 = 11;
    const NO_PREALLOC: u32 = 1;
    let trie = create(MapCreate {
        map_type: LPM_TRIE,
        key_size: 8,
        value_size: 4,
        max_entries: 8,
        map_flags: NO_PREALLOC,
    });
    BytesMap::new(trie.expect("a trie")).expect("a map")
}

#[test]
fn an_entry_is_taken_where_the_kernel_can_only_look_and_remove() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let trie = trie();
    let (key, value) = ([32, 0, 0, 0, 10, 0, 0, 7], [1, 2, 3, 4]);
    trie.set(&key, &value, Update::New).expect("room");
    assert_eq!(trie.take(&key).expect("a look"), Some(value.to_vec()));
    assert_eq!(trie.take(&key).expect("a look"), None);
}
