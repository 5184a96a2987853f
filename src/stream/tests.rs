//! The stream as a whole: what is read back, what a crash may leave, what a failing disk does.

pub mod simulated;
pub mod simulated_stream;
mod simulation;

use std::{
    fs, io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU32, AtomicU64},
};

use millrace_core::{Capture, Column, ColumnType, Columns, Op, Table};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    disk::DiskFile,
    frame::Header,
    segment::{Probe, SegmentReader},
    *,
};

fn options(folder: &Path) -> StreamOptions {
    StreamOptions {
        folder: folder.join("task"),
        shards: 1,
        retention: Duration::from_secs(24 * 3600),
        segment_bytes: 1 << 20,
        compress: true,
        disk_bytes_max: 1 << 30,
        epoch: 1,
    }
}

fn table(name: &str, version: u32) -> Arc<Table> {
    let column = |(id, name, ty): (i32, &str, ColumnType)| Column {
        id,
        name: name.into(),
        ty,
        source_type: "whatever".into(),
        nullable: true,
        older_rows: None,
    };
    let columns = [(1, "id", ColumnType::Int64), (2, "note", ColumnType::Text)].map(column).to_vec();
    Arc::new(Table {
        name: TableName::new("public", name),
        source_id: 16_384,
        version,
        columns,
        key: vec![0],
        capture: Capture::All,
        storage_id: 1,
        definition_id: 0,
        columns_ever: 0,
        estimated_rows: 0,
        estimated_bytes: 0,
        parts: None,
    })
}

/// Rows `ids` of a transaction that committed at `commit`.
fn batch(table: &Arc<Table>, commit: u128, ids: std::ops::Range<i64>) -> ChangeBatch {
    let mut after = Columns::new(table.columns.iter().map(|column| &column.ty));
    let (mut ops, mut order, mut commit_time_us) = (vec![], vec![], vec![]);
    for (ordinal, id) in (1..).zip(ids) {
        after.column_mut(0).push_i64(id);
        if id % 3 == 0 {
            after.column_mut(1).push_null()
        } else {
            after.column_mut(1).push_str(&format!("note {id}"))
        }
        after.end_row();
        ops.push(Op::Insert);
        order.push(Order { commit, ordinal });
        commit_time_us.push(commit as i64 * 1000);
    }
    ChangeBatch { table: table.clone(), ops, order, commit_time_us, after, absent: None }
}

fn rows(commit: u128, ids: std::ops::Range<i64>) -> Append {
    let captured = ids.end.abs_diff(ids.start);
    let items = vec![Change::Rows(batch(&table("orders", 1), commit, ids))];
    let upto = Some(Position(commit + 1));
    let changes = Changes { items, upto, newest_commit_us: Some(commit as i64 * 1000), ..Changes::default() };
    Append { changes, captured, filtered: BTreeMap::new() }
}

fn unmarked(mut append: Append) -> Append {
    append.changes.upto = None;
    append
}

fn position_only(position: u128) -> Append {
    let changes = Changes { upto: Some(Position(position)), ..Changes::default() };
    Append { changes, ..Append::default() }
}

fn entries(stream: &Stream) -> Vec<Entry> {
    let to = stream.last_mark().map_or(LogPosition(0), |mark| mark.at);
    entries_between(stream, stream.usage().oldest, to)
}

fn entries_between(stream: &Stream, from: LogPosition, to: LogPosition) -> Vec<Entry> {
    let mut reader = stream.read(from, to, Box::new(|_, _| true)).unwrap();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

/// The ids of all rows that can be read.
fn ids(stream: &Stream) -> Vec<i64> {
    ids_of(&entries(stream))
}

fn ids_of(entries: &[Entry]) -> Vec<i64> {
    let mut ids = vec![];
    for entry in entries {
        if let Entry::Rows { batch, .. } = entry {
            let column = &batch.after.columns()[0];
            ids.extend((0..batch.rows()).map(|row| column.cell_text(row).unwrap().parse::<i64>().unwrap()));
        }
    }
    ids
}

fn all(range: std::ops::Range<i64>) -> Vec<i64> {
    range.collect()
}

fn segment_paths(folder: &Path) -> Vec<PathBuf> {
    segment::list(&RealDisk, folder).unwrap().into_iter().map(|base| segment::path(folder, base)).collect()
}

/// A copy of a stream's folder, as a crash would leave it.
fn copy(options: &StreamOptions, to: &Path) -> StreamOptions {
    let copied = StreamOptions { folder: to.join("task"), ..options.clone() };
    let _ = fs::remove_dir_all(&copied.folder);
    fs::create_dir_all(&copied.folder).unwrap();
    for path in segment_paths(&options.folder) {
        fs::copy(&path, copied.folder.join(path.file_name().unwrap())).unwrap();
    }
    copied
}

/// Offsets, headers and ends of all frames of a segment that was not damaged.
fn frames(folder: &Path, base: u64) -> Vec<(u64, Header, u64)> {
    let mut reader = SegmentReader::open(&RealDisk, folder, base).unwrap();
    let mut offset = segment::HEADER_LEN;
    let mut frames = vec![];
    while let Probe::Whole(header, next) = reader.probe(offset).unwrap() {
        frames.push((offset, header, next));
        offset = next;
    }
    frames
}

#[tokio::test]
async fn everything_is_read_back_in_log_order() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(options(folder.path())).unwrap();
    assert_eq!(stream.last_mark(), None);
    let (orders, items) = (table("orders", 1), table("items", 1));
    let reject = |name: &str| Reject {
        table: TableName::new("public", name),
        key: vec![("id".into(), Some("1".into()))],
        op: Op::Update,
        order: Order { commit: 10, ordinal: 9 },
        commit_time_us: Some(77),
        column: "note".into(),
        reason: "too long".into(),
        row: vec![("id".into(), millrace_core::batch::Cell::Text("1".into()))],
    };
    let order = Order { commit: 10, ordinal: 4 };
    let ddl = Ddl::Evolved { table: table("orders", 2), order };
    let gone = Ddl::Unsupported { table: orders.name.clone(), what: "a column was dropped".into(), order };
    let tables = vec![orders.name.clone(), items.name.clone()];
    let changes = vec![
        Change::Rows(batch(&orders, 10, 0..3)),
        Change::Rows(batch(&items, 10, 3..5)),
        Change::Rejected(vec![reject("orders"), reject("orders"), reject("items")]),
        Change::Truncate { tables: tables.clone(), order },
        Change::Ddl(ddl.clone()),
        Change::Ddl(gone.clone()),
        Change::Rows(batch(&table("orders", 2), 10, 5..6)),
    ];
    let changes = Changes { items: changes, upto: Some(Position(11)), newest_commit_us: Some(9), ..Changes::default() };
    let filtered = BTreeMap::from([("superseded".to_string(), 2)]);
    let durable = stream.append(Append { changes, captured: 11, filtered: filtered.clone() }).await.unwrap();
    assert_eq!(durable.map(|durable| durable.get()), Some(Position(11)));

    let mark = stream.last_mark().unwrap();
    let read = entries(&stream);
    let bytes: u64 = read.iter().map(|entry| if let Entry::Rows { bytes, .. } = entry { *bytes } else { 0 }).sum();
    let mut expected = read.iter();
    let mut next = || expected.next().unwrap();
    assert!(matches!(next(), Entry::Rows { batch: b, .. } if *b == batch(&orders, 10, 0..3)));
    assert!(matches!(next(), Entry::Rows { batch: b, .. } if *b == batch(&items, 10, 3..5)));
    assert!(matches!(next(), Entry::Rejected { rejects, .. } if *rejects == [reject("orders"), reject("orders")]));
    assert!(matches!(next(), Entry::Rejected { rejects, .. } if *rejects == [reject("items")]));
    assert!(matches!(next(), Entry::Truncate { tables: t, order: o, .. } if *t == tables && *o == order));
    assert!(matches!(next(), Entry::Ddl { ddl: d, .. } if *d == ddl));
    assert!(matches!(next(), Entry::Ddl { ddl: d, .. } if *d == gone));
    assert!(matches!(next(), Entry::Rows { batch: b, .. } if b.table.version == 2));
    assert!(matches!(next(), Entry::Mark(m) if *m == mark));
    assert!(expected.next().is_none());
    assert_eq!((mark.source, mark.newest_commit_us), (Position(11), 9));
    assert_eq!((mark.totals.captured, mark.totals.rows, &mark.totals.filtered), (11, 9, &filtered));
    assert!(mark.totals.bytes > bytes && bytes > 0, "rejected rows count too");

    // A reader that does not want a table is told how many rows it passed over.
    let only_items = |name: &TableName, _| name.name == "items";
    let mut reader = stream.read(LogPosition(0), mark.at, Box::new(only_items)).unwrap();
    let read: Vec<Entry> = std::iter::from_fn(|| reader.next_entry().unwrap()).collect();
    assert_eq!(ids_of(&read), all(3..5));
    let skipped: u64 = read.iter().map(|entry| if let Entry::Skipped { rows, .. } = entry { *rows } else { 0 }).sum();
    assert_eq!(skipped, 6);
}

#[tokio::test]
async fn a_reader_may_begin_at_any_mark_and_in_any_segment() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(StreamOptions { segment_bytes: 2000, ..options(folder.path()) }).unwrap();
    let mut marks = vec![LogPosition(0)];
    for commit in 0..30i64 {
        stream.append(rows(commit as u128, commit * 10..commit * 10 + 10)).await.unwrap();
        marks.push(stream.last_mark().unwrap().at);
    }
    assert!(stream.usage().segments > 3);
    for (from, &from_at) in marks.iter().enumerate() {
        for (to, &to_at) in marks.iter().enumerate().skip(from) {
            let read = ids_of(&entries_between(&stream, from_at, to_at));
            assert_eq!(read, all(from as i64 * 10..to as i64 * 10));
        }
    }
}

// trap: 2 (crash)
#[tokio::test]
async fn opening_again_goes_on_where_the_last_mark_stands() {
    let folder = TempDir::new().unwrap();
    for round in 0..4i64 {
        // The epoch rises with every start; the shape of the log does not depend on it.
        let stream = Stream::open(StreamOptions { epoch: 1 + round as u64 / 2, ..options(folder.path()) }).unwrap();
        let before = stream.last_mark();
        assert_eq!(before.as_ref().map_or(0, |mark| mark.totals.captured), round as u64 * 5);
        stream.append(rows(round as u128 + 1, round * 5..round * 5 + 5)).await.unwrap();
        let after = stream.last_mark().unwrap();
        assert_eq!((after.totals.captured, after.totals.rows), (round as u64 * 5 + 5, round as u64 * 5 + 5));
        assert!(before.is_none_or(|before| before.at < after.at && before.arrival_us <= after.arrival_us));
        assert_eq!(ids(&stream), all(0..round * 5 + 5));
        // Frames without a mark are not readable, and gone after the next start.
        assert!(stream.append(unmarked(rows(round as u128 + 2, 900..950))).await.unwrap().is_none());
        assert_eq!(ids(&stream), all(0..round * 5 + 5));
    }
    // Starts without changes leave no files behind.
    let files = segment_paths(&options(folder.path()).folder).len();
    for _ in 0..3 {
        drop(Stream::open(StreamOptions { epoch: 9, ..options(folder.path()) }).unwrap());
    }
    assert!(segment_paths(&options(folder.path()).folder).len() <= files + 1);
    let stream = Stream::open(StreamOptions { epoch: 9, ..options(folder.path()) }).unwrap();
    assert_eq!(ids(&stream), all(0..20));
}

// trap: 2
#[tokio::test]
async fn a_huge_transaction_becomes_readable_with_its_mark() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions { segment_bytes: 1500, ..options(folder.path()) };
    let stream = Stream::open(options.clone()).unwrap();
    stream.append(rows(1, 0..10)).await.unwrap();
    let first = stream.last_mark();
    for part in 1..20 {
        assert!(stream.append(unmarked(rows(2, part * 10..part * 10 + 10))).await.unwrap().is_none());
        assert_eq!(stream.last_mark(), first);
    }
    assert!(stream.usage().segments > 2, "it spans segments");

    // A crash in its middle takes all of it back, over several segments.
    let crashed = TempDir::new().unwrap();
    let copied = copy(&options, crashed.path());
    let reopened = Stream::open(copied.clone()).unwrap();
    assert_eq!(reopened.last_mark(), first);
    assert_eq!(ids(&reopened), all(0..10));
    assert!(reopened.usage().segments <= 2);
    drop(reopened);

    let durable = stream.append(Append { captured: 0, ..position_only(3) }).await.unwrap();
    assert_eq!(durable.map(|durable| durable.get()), Some(Position(3)));
    assert_eq!(ids(&stream), all(0..200));
    assert_eq!(stream.last_mark().unwrap().totals.captured, 200);
    drop(stream);
    assert_eq!(ids(&Stream::open(options).unwrap()), all(0..200));
}

#[tokio::test]
async fn idle_positions_are_marked_now_and_then() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(options(folder.path())).unwrap();
    assert!(stream.append(position_only(5)).await.unwrap().is_some(), "the first mark is written at once");
    assert!(stream.append(position_only(6)).await.unwrap().is_none());
    let mut counted = position_only(7);
    counted.captured = 4;
    counted.filtered.insert("condition".into(), 4);
    assert!(stream.append(counted).await.unwrap().is_none());
    assert_eq!(stream.last_mark().unwrap().source, Position(5));
    // What idle appends counted goes into the next mark.
    stream.append(rows(8, 0..1)).await.unwrap();
    let totals = stream.last_mark().unwrap().totals;
    assert_eq!((totals.captured, totals.filtered.get("condition"), totals.rows), (5, Some(&4), 1));
    assert!(stream.append(Append::default()).await.unwrap().is_none());
    assert!(stream.append(position_only(2)).await.unwrap().is_none(), "a position that is behind is nothing new");
}

#[tokio::test]
async fn an_idle_position_that_is_awaited_is_marked_at_once() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(options(folder.path())).unwrap();
    stream.append(position_only(5)).await.unwrap();
    let awaited = |position| {
        let mut append = position_only(position);
        append.changes.awaited = true;
        append
    };
    assert_eq!(stream.append(awaited(6)).await.unwrap().map(|durable| durable.get()), Some(Position(6)));
    assert!(stream.append(awaited(6)).await.unwrap().is_none(), "it is marked already");
    assert_eq!(stream.last_mark().unwrap().source, Position(6));
}

#[tokio::test]
async fn a_position_never_goes_back_and_bad_batches_are_refused() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(options(folder.path())).unwrap();
    stream.append(rows(10, 0..5)).await.unwrap();
    let error = stream.append(rows(8, 5..6)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    let mut torn = batch(&table("orders", 1), 11, 5..7);
    torn.ops.pop();
    let other_table = ChangeBatch {
        table: Arc::new(Table { columns: vec![], ..Table::clone(&table("x", 1)) }),
        ..batch(&table("x", 1), 11, 5..6)
    };
    let absent = ChangeBatch { absent: Some(Default::default()), ..batch(&table("x", 1), 11, 5..6) };
    for bad in [torn, other_table, absent] {
        let changes = Changes { items: vec![Change::Rows(bad)], upto: Some(Position(12)), ..Changes::default() };
        assert_eq!(stream.append(Append { changes, ..Append::default() }).await.unwrap_err().kind, ErrorKind::Internal);
    }
    stream.append(rows(11, 5..7)).await.unwrap();
    assert_eq!(ids(&stream), all(0..7));
    assert_eq!(stream.last_mark().unwrap().totals.captured, 7, "what was refused is not counted");
}

#[tokio::test]
async fn appends_in_flight_keep_their_order_and_share_fsyncs() {
    let folder = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let stream = Stream::open_on(options(folder.path()), Arc::new(disk.clone())).unwrap();
    disk.syncs.store(0, Ordering::SeqCst);
    // Every third one is large enough to be encoded on another thread.
    let size = |n: i64| if n % 3 == 0 { 20_000 } else { 2 };
    let mut next = 0;
    let appends: Vec<_> = (0..60i64)
        .map(|n| {
            let from = next;
            next += size(n);
            stream.append(rows(n as u128, from..next))
        })
        .collect();
    let positions: Vec<_> =
        futures::future::join_all(appends).await.into_iter().map(|d| d.unwrap().unwrap().get()).collect();
    assert_eq!(positions, (1..=60).map(Position).collect::<Vec<_>>());
    assert_eq!(ids(&stream), all(0..next));
    let syncs = disk.syncs.load(Ordering::SeqCst);
    assert!(syncs < 60, "{syncs} fsyncs for 60 appends");
}

#[tokio::test]
async fn only_what_is_durable_can_be_read() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(StreamOptions { segment_bytes: 1000, ..options(folder.path()) }).unwrap();
    stream.append(rows(1, 0..50)).await.unwrap();
    let at = stream.last_mark().unwrap().at;
    stream.append(unmarked(rows(2, 50..99))).await.unwrap();
    for (from, to) in [(LogPosition(0), LogPosition(at.0 + 1)), (at, LogPosition(0))] {
        let error = stream.read(from, to, Box::new(|_, _| true)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
    }
    assert!(entries_between(&stream, at, at).is_empty());
    // A caller who is wrong about a place is told so; the disk is not blamed.
    for (from, to) in [(LogPosition(0), LogPosition(at.0 - 1)), (LogPosition(at.0 - 1), at)] {
        let mut reader = stream.read(from, to, Box::new(|_, _| true)).unwrap();
        let error = std::iter::from_fn(|| reader.next_entry().transpose()).find_map(Result::err).unwrap();
        assert_eq!(error.kind, ErrorKind::Internal, "{error}");
    }
    let mut marks = stream.marks();
    marks.mark_unchanged();
    stream.append(rows(2, 99..100)).await.unwrap();
    assert!(marks.has_changed().unwrap());
    assert_eq!(*marks.borrow(), stream.last_mark());
}

// trap: 44
#[tokio::test]
async fn a_stream_is_open_once_and_refuses_a_newer_epoch() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(StreamOptions { epoch: 5, ..options(folder.path()) }).unwrap();
    assert_eq!(Stream::open(options(folder.path())).unwrap_err().kind, ErrorKind::LogBusy);
    drop(stream);
    let error = Stream::open(StreamOptions { epoch: 4, ..options(folder.path()) }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Storage);
    assert!(error.to_string().contains("fencing epoch 5"), "{error}");
    Stream::open(StreamOptions { epoch: 5, ..options(folder.path()) }).unwrap();
    let error = Stream::open(StreamOptions { shards: 0, folder: folder.path().join("x"), ..options(folder.path()) });
    assert_eq!(error.unwrap_err().kind, ErrorKind::Config);
}

/// Three acknowledged appends in one segment; gives the places behind their marks and the segment's path.
async fn three_appends(options: &StreamOptions) -> ([u64; 3], PathBuf) {
    let stream = Stream::open(options.clone()).unwrap();
    let mut ends = [0; 3];
    for (n, end) in (0..).zip(&mut ends) {
        stream.append(rows(n as u128, n * 4..n * 4 + 4)).await.unwrap();
        *end = stream.last_mark().unwrap().at.0;
    }
    (ends, segment_paths(&options.folder).pop().unwrap())
}

/// A folder in memory where there is such a place: opening a stream a thousand times costs as many fsyncs.
fn quick_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

// trap: 2, 45 (crash)
#[tokio::test]
async fn a_log_cut_at_any_byte_ends_at_its_last_whole_mark() {
    let folder = quick_folder();
    let options = StreamOptions { segment_bytes: 8000, ..options(folder.path()) };
    let (ends, path) = three_appends(&options).await;
    let bytes = fs::read(&path).unwrap();
    let content = frames(&options.folder, 0)[0].2;
    for cut in content..=ends[2] {
        // The rest is missing, or zeros as in a file that was given its length at once.
        for zeros in [0, 700] {
            let crashed = quick_folder();
            let copied = copy(&options, crashed.path());
            let torn = [&bytes[..cut as usize], &vec![0; zeros]].concat();
            fs::write(&segment_paths(&copied.folder)[0], &torn).unwrap();
            let stream = Stream::open(copied.clone()).unwrap();
            // (Zeros at the end of a mark are as good as those that were written there.)
            let is_whole = |end: &&u64| torn.get(..**end as usize) == bytes.get(..**end as usize);
            let expected = ends.iter().filter(is_whole).count() as i64;
            assert_eq!(ids(&stream), all(0..expected * 4), "cut at {cut}");
            if cut % 16 == 0 {
                stream.append(rows(9, expected * 4..20)).await.unwrap();
                drop(stream);
                assert_eq!(ids(&Stream::open(copied).unwrap()), all(0..20));
            }
        }
    }
}

// trap: 45
#[tokio::test]
async fn a_flipped_byte_is_never_read_as_data() {
    let folder = quick_folder();
    let options = StreamOptions { segment_bytes: 8000, ..options(folder.path()) };
    let (ends, path) = three_appends(&options).await;
    let bytes = fs::read(&path).unwrap();
    for at in 0..ends[2] as usize {
        let crashed = quick_folder();
        let copied = copy(&options, crashed.path());
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        let flipped_path = segment_paths(&copied.folder).remove(0);
        fs::write(&flipped_path, flipped).unwrap();
        match Stream::open(copied) {
            // The last append may be a torn tail; then its mark is gone, and the source, which was told of it, is refused.
            Ok(stream) => {
                assert!(at as u64 >= ends[1], "damage at {at} was not seen");
                assert_eq!(ids(&stream), all(0..8));
            }
            Err(error) => {
                assert!(matches!(error.kind, ErrorKind::LogDamaged | ErrorKind::Storage), "{error}");
                let text = error.to_string();
                assert!(text.contains(&flipped_path.display().to_string()), "{text}");
                if at as u64 >= segment::HEADER_LEN {
                    let broken = frames(&options.folder, 0).into_iter().rfind(|frame| frame.0 <= at as u64).unwrap();
                    assert!(text.contains(&format!("at offset {}", broken.0)), "{text}");
                }
            }
        }
    }
}

// trap: 45 (crash)
#[tokio::test]
async fn a_write_whose_first_page_was_lost_is_a_torn_tail() {
    let folder = TempDir::new().unwrap();
    let options = options(folder.path());
    let (ends, path) = three_appends(&options).await;
    // The third append never was fsynced: its first frame is zeros, its mark is whole.
    let first = frames(&options.folder, 0).into_iter().find(|frame| frame.0 == ends[1]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0; (first.2 - first.0) as usize], first.0).unwrap();
    assert_eq!(ids(&Stream::open(options).unwrap()), all(0..8));
}

#[tokio::test]
async fn damage_in_a_closed_segment_is_told() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions { segment_bytes: 1500, ..options(folder.path()) };
    let stream = Stream::open(options.clone()).unwrap();
    for commit in 0..20i64 {
        stream.append(rows(commit as u128, commit * 10..commit * 10 + 10)).await.unwrap();
    }
    let mark = stream.last_mark().unwrap();
    drop(stream);
    let path = segment_paths(&options.folder).remove(1);
    let base = segment::list(&RealDisk, &options.folder).unwrap()[1];
    let rows_frame = frames(&options.folder, base).into_iter().find(|f| f.1.kind == frame::Kind::Rows).unwrap();
    let whole = fs::read(&path).unwrap();

    // In a payload it shows when that is read.
    let mut bytes = whole.clone();
    bytes[rows_frame.2 as usize - 1] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let stream = Stream::open(options.clone()).unwrap();
    let mut reader = stream.read(LogPosition(0), mark.at, Box::new(|_, _| true)).unwrap();
    let error = std::iter::from_fn(|| reader.next_entry().transpose()).find_map(Result::err).unwrap();
    assert_eq!(error.kind, ErrorKind::LogDamaged);
    assert!(error.to_string().contains(&format!("{} at offset {}", path.display(), rows_frame.0)), "{error}");
    drop(stream);

    // In a header, or where a segment is missing or cut short, the stream is not opened.
    let mut bytes = whole.clone();
    bytes[rows_frame.0 as usize + 20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(Stream::open(options.clone()).unwrap_err().kind, ErrorKind::LogDamaged);
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(Stream::open(options.clone()).unwrap_err().kind, ErrorKind::LogDamaged);
    fs::remove_file(&path).unwrap();
    assert_eq!(Stream::open(options.clone()).unwrap_err().kind, ErrorKind::LogDamaged);
    fs::write(&path, &whole).unwrap();
    assert_eq!(ids(&Stream::open(options).unwrap()), all(0..200));
}

#[tokio::test]
async fn retention_takes_old_segments_that_are_delivered() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions { segment_bytes: 1500, retention: Duration::ZERO, ..options(folder.path()) };
    let stream = Stream::open(options.clone()).unwrap();
    let mut marks = vec![];
    for commit in 0..20i64 {
        stream.append(rows(commit as u128, commit * 10..commit * 10 + 10)).await.unwrap();
        marks.push(stream.last_mark().unwrap());
    }
    let before = stream.usage();
    stream.retain().unwrap();
    assert_eq!(stream.usage(), before, "without a pin nothing goes");
    let mut slow = stream.read(LogPosition(0), marks[19].at, Box::new(|_, _| true)).unwrap();
    stream.set_pin(marks[9].at);
    stream.retain().unwrap();
    let after = stream.usage();
    assert!(after.oldest > before.oldest && after.oldest <= marks[9].at && after.bytes < before.bytes);
    assert_eq!(segment_paths(&options.folder).len() as u64, after.segments);
    let error = stream.read(LogPosition(0), marks[19].at, Box::new(|_, _| true)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert_eq!(slow.next_entry().unwrap_err().kind, ErrorKind::Internal, "a range that went while it was read");
    let rest = ids_of(&entries_between(&stream, marks[9].at, marks[19].at));
    assert_eq!(rest, all(100..200));

    // Everything is delivered: what is left is enough to go on from.
    stream.set_pin(marks[19].at);
    stream.retain().unwrap();
    assert_eq!(stream.usage().segments, 1);
    drop(stream);
    let stream = Stream::open(options.clone()).unwrap();
    assert_eq!(stream.last_mark().as_ref(), marks.last());
    stream.append(rows(30, 200..210)).await.unwrap();
    assert_eq!(stream.last_mark().unwrap().totals.captured, 210);
    drop(stream);

    // Young segments stay, whatever the pin.
    let stream = Stream::open(StreamOptions { retention: Duration::from_secs(3600), ..options }).unwrap();
    let before = stream.usage();
    stream.set_pin(stream.last_mark().unwrap().at);
    stream.retain().unwrap();
    assert_eq!(stream.usage(), before);
}

// trap: 46
#[tokio::test]
async fn at_the_disk_bound_an_append_waits_for_retention() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions {
        segment_bytes: 4000,
        retention: Duration::ZERO,
        disk_bytes_max: 20_000,
        ..options(folder.path())
    };
    let stream = Stream::open(options).unwrap();
    let mut next = 0;
    let blocked = loop {
        let append = stream.append(rows(next as u128, next * 10..next * 10 + 10));
        let mut append = Box::pin(append);
        match tokio::time::timeout(Duration::from_millis(300), &mut append).await {
            Ok(appended) => appended.unwrap(),
            Err(_) => break append,
        };
        next += 1;
        assert!(next < 1000, "the bound does not hold");
    };
    assert!(stream.usage().bytes <= 20_000 && stream.usage().bytes > 10_000);
    // Nothing is delivered: nothing may go, and the append goes on waiting.
    stream.retain().unwrap();
    let mut blocked = blocked;
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut blocked).await.is_err());
    stream.set_pin(stream.last_mark().unwrap().at);
    stream.retain().unwrap();
    blocked.await.unwrap();
    let read = ids(&stream);
    assert_eq!(read.last(), Some(&(next * 10 + 9)));
}

#[tokio::test]
async fn closing_ends_an_append_that_waits_for_space() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(StreamOptions { disk_bytes_max: 9000, ..options(folder.path()) }).unwrap();
    for commit in 0..1000i64 {
        let append = stream.append(rows(commit as u128, 0..10));
        if tokio::time::timeout(Duration::from_millis(300), append).await.is_err() {
            break;
        }
    }
    // The abandoned append keeps later ones out, and does not keep the stream from closing.
    assert_eq!(stream.append(rows(2000, 0..1)).await.unwrap_err().kind, ErrorKind::Internal);
    drop(stream);
}

#[tokio::test]
async fn what_is_spilled_counts_in_the_bound_and_leaves_the_log_its_share() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions { segment_bytes: 4000, disk_bytes_max: 40_000, ..options(folder.path()) };
    let stream = Stream::open(options).unwrap();
    let room = stream.spill_room();
    assert_eq!(room.folder(), folder.path().join("task/spill"));
    assert!(room.admits(30_000) && room.admits(50_000), "beyond the bound where nothing can be freed");
    room.hold(10_000);
    assert!(stream.usage().bytes > 10_000);
    let mut next = 0;
    while stream.usage().segments < 3 {
        stream.append(rows(next as u128, next * 10..next * 10 + 10)).await.unwrap();
        next += 1;
    }
    assert!(room.admits(1000));
    assert!(!room.admits(30_000), "closed segments wait for their delivery, and this for them");

    // Under pressure what is delivered goes before its time.
    stream.set_pin(stream.last_mark().unwrap().at);
    stream.retain().unwrap();
    assert_eq!(stream.usage().segments, 3);
    room.hold(38_000);
    stream.retain().unwrap();
    assert_eq!(stream.usage().segments, 1);
    assert!(room.admits(30_000));

    // However much is kept, commits go on: an eighth of the bound is the log's.
    room.hold(1 << 40);
    let before = stream.usage().bytes;
    loop {
        let append = stream.append(rows(next as u128, next * 10..next * 10 + 10));
        let mut append = Box::pin(append);
        let Err(_) = tokio::time::timeout(Duration::from_millis(300), &mut append).await else {
            next += 1;
            continue;
        };
        let log_bytes = stream.usage().bytes - (1 << 40);
        assert!(log_bytes <= 5000 && stream.usage().bytes > before, "{log_bytes}");
        // It goes on as soon as there is room again.
        room.hold(0);
        append.await.unwrap();
        break;
    }
    assert_eq!(ids(&stream).last(), Some(&(next * 10 + 9)));
}

/// A disk that counts its fsyncs of data and fails when it is told to.
#[derive(Debug, Clone, Default)]
struct FaultyDisk(Arc<Faults>);

#[derive(Debug, Default)]
struct Faults {
    syncs: AtomicU32,
    /// Writes fail with this error number after as many bytes; 0 for never.
    write_error: AtomicU32,
    bytes_left: AtomicU64,
    /// Fsyncs fail.
    sync_error: AtomicU32,
}

#[derive(Debug)]
struct FaultyFile {
    faults: Arc<Faults>,
    file: Box<dyn DiskFile>,
}

impl std::ops::Deref for FaultyDisk {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.0
    }
}

impl FaultyDisk {
    fn watch(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile { faults: self.0.clone(), file })
    }
}

impl Disk for FaultyDisk {
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(folder)
    }

    fn open(&self, path: &Path, writes: bool) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path, writes).map(|file| self.watch(file))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.create(path).map(|file| self.watch(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.sync_folder(folder)
    }

    fn now_us(&self) -> i64 {
        RealDisk.now_us()
    }

    fn lived(&self) -> Duration {
        RealDisk.lived()
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let error = self.faults.write_error.load(Ordering::SeqCst);
        if error == 0 {
            return self.file.write_at(bytes, offset);
        }
        let left = self.faults.bytes_left.load(Ordering::SeqCst) as usize;
        self.file.write_at(&bytes[..left.min(bytes.len())], offset)?;
        Err(io::Error::from_raw_os_error(error as i32))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        match self.faults.sync_error.load(Ordering::SeqCst) {
            0 => self.file.sync_data(),
            error => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

const NO_SPACE: u32 = 28;
const IO_ERROR: u32 = 5;

// trap: 45
#[tokio::test]
async fn a_full_disk_takes_back_what_it_could_not_hold() {
    let folder = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let options = options(folder.path());
    let stream = Stream::open_on(options.clone(), Arc::new(disk.clone())).unwrap();
    stream.append(rows(1, 0..10)).await.unwrap();
    let mark = stream.last_mark();
    for left in [0, 1, 70, 300, 5000] {
        disk.bytes_left.store(left, Ordering::SeqCst);
        disk.write_error.store(NO_SPACE, Ordering::SeqCst);
        // Everything in flight fails, so that nothing is written behind a gap, though only the first one met the disk.
        let items = table("items", left as u32 + 2);
        let mut with_new_table = rows(2, 10..20);
        with_new_table.changes.items.push(Change::Rows(batch(&items, 2, 10..20)));
        let disk_too = disk.clone();
        let second = async {
            let append = stream.append(rows(3, 20..30));
            disk_too.write_error.store(NO_SPACE, Ordering::SeqCst);
            append.await
        };
        let (first, second) = futures::join!(stream.append(with_new_table), second);
        assert_eq!(first.unwrap_err().kind, ErrorKind::DiskFull);
        assert_eq!(second.unwrap_err().kind, ErrorKind::DiskFull);
        assert_eq!(stream.last_mark(), mark);
        assert_eq!(ids(&stream), all(0..10));
        // What is left on disk now is a stream like any other.
        let crashed = TempDir::new().unwrap();
        assert_eq!(ids(&Stream::open(copy(&options, crashed.path())).unwrap()), all(0..10));
    }
    disk.write_error.store(0, Ordering::SeqCst);
    let items = Change::Rows(batch(&table("items", 2), 2, 10..20));
    let changes = Changes { items: vec![items], upto: Some(Position(3)), ..Changes::default() };
    stream.append(Append { changes, captured: 10, filtered: BTreeMap::new() }).await.unwrap();
    assert_eq!(ids(&stream), all(0..20));
    assert_eq!(stream.last_mark().unwrap().totals.captured, 20, "what was taken back is not counted");
    drop(stream);
    assert_eq!(ids(&Stream::open(options).unwrap()), all(0..20));
}

// trap: 45
#[tokio::test]
async fn a_full_disk_inside_a_huge_transaction_needs_the_stream_opened_again() {
    let folder = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let stream = Stream::open_on(options(folder.path()), Arc::new(disk.clone())).unwrap();
    stream.append(rows(1, 0..10)).await.unwrap();
    stream.append(unmarked(rows(2, 10..20))).await.unwrap();
    disk.write_error.store(NO_SPACE, Ordering::SeqCst);
    assert_eq!(stream.append(unmarked(rows(2, 20..30))).await.unwrap_err().kind, ErrorKind::DiskFull);
    disk.write_error.store(0, Ordering::SeqCst);
    assert_eq!(stream.append(rows(2, 30..40)).await.unwrap_err().kind, ErrorKind::DiskFull);
    drop(stream);
    let stream = Stream::open(options(folder.path())).unwrap();
    stream.append(rows(2, 10..40)).await.unwrap();
    assert_eq!(ids(&stream), all(0..40));
}

// trap: 6, 45
#[tokio::test]
async fn a_failed_fsync_is_final_and_its_pages_are_not_believed() {
    let folder = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    for error in [IO_ERROR, NO_SPACE] {
        let stream = Stream::open_on(options(folder.path()), Arc::new(disk.clone())).unwrap();
        let before = ids(&stream).len() as i64;
        stream.append(rows(error as u128 * 10, before..before + 10)).await.unwrap();
        let mark = stream.last_mark();
        disk.sync_error.store(error, Ordering::SeqCst);
        let failed = stream.append(rows(error as u128 * 10 + 1, 900..910)).await.unwrap_err();
        assert_eq!(failed.kind, ErrorKind::Storage);
        disk.sync_error.store(0, Ordering::SeqCst);
        let later = stream.append(rows(error as u128 * 10 + 2, 910..920)).await.unwrap_err();
        assert_eq!(later.kind, ErrorKind::Storage, "it is not tried again");
        assert_eq!(stream.last_mark(), mark);
        drop(stream);
        let stream = Stream::open(options(folder.path())).unwrap();
        assert_eq!(stream.last_mark(), mark, "a restart does not find what may only be in memory");
        assert_eq!(ids(&stream), all(0..before + 10));
    }
}

#[tokio::test]
async fn any_other_failed_write_is_final() {
    let folder = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let stream = Stream::open_on(options(folder.path()), Arc::new(disk.clone())).unwrap();
    stream.append(rows(1, 0..10)).await.unwrap();
    disk.bytes_left.store(100, Ordering::SeqCst);
    disk.write_error.store(IO_ERROR, Ordering::SeqCst);
    assert_eq!(stream.append(rows(2, 10..20)).await.unwrap_err().kind, ErrorKind::Storage);
    disk.write_error.store(0, Ordering::SeqCst);
    assert_eq!(stream.append(rows(2, 10..20)).await.unwrap_err().kind, ErrorKind::Storage);
    drop(stream);
    assert_eq!(ids(&Stream::open(options(folder.path())).unwrap()), all(0..10));
}

#[tokio::test]
async fn rows_of_one_key_meet_in_one_shard_and_its_counter_never_repeats() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions { shards: 5, segment_bytes: 6000, ..options(folder.path()) };
    for round in 0..4u128 {
        let stream = Stream::open(options.clone()).unwrap();
        for n in 0..5 {
            stream.append(rows(round * 10 + n, 0..40)).await.unwrap();
        }
        stream.append(unmarked(rows(round * 10 + 9, 0..40))).await.unwrap();
        assert_eq!(ids(&stream).len() as u128, (round + 1) * 200);
    }
    // Later opens keep the number of shards that is on disk.
    drop(Stream::open(StreamOptions { shards: 1, ..options.clone() }).unwrap());
    let shards = Shards::new(5).unwrap();
    let expected = shards.of_rows(&batch(&table("orders", 1), 1, 0..40));
    let mut counters = [0u64; 5];
    for base in segment::list(&RealDisk, &options.folder).unwrap() {
        let mut reader = SegmentReader::open(&RealDisk, &options.folder, base).unwrap();
        assert_eq!(reader.header.shards, 5);
        for (_, header, end) in frames(&options.folder, base) {
            if header.kind == frame::Kind::Rows {
                let stored = reader.stored(&header, end).unwrap().unwrap();
                let found: Vec<u16> = stored[..40].iter().map(|shard| u16::from(*shard)).collect();
                assert_eq!(found, expected);
            }
            for run in header.runs {
                assert_eq!(run.first, counters[run.shard as usize]);
                counters[run.shard as usize] += u64::from(run.rows);
            }
        }
    }
    assert_eq!(counters.iter().sum::<u64>(), 800);
    assert!(counters.iter().all(|rows| *rows > 0), "{counters:?}");
}

#[tokio::test]
async fn a_batch_above_the_bound_becomes_several_frames() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(options(folder.path())).unwrap();
    stream.append(rows(1, 0..150_000)).await.unwrap();
    let read = entries(&stream);
    assert_eq!(read.len(), 4);
    assert_eq!(ids_of(&read), all(0..150_000));
}

// trap: 45
#[tokio::test]
async fn arrival_never_goes_back() {
    let folder = TempDir::new().unwrap();
    let stream = Stream::open(options(folder.path())).unwrap();
    let ahead = stream.shared.now_us() + 3_600_000_000;
    stream.shared.set_clock_ahead(ahead);
    stream.append(rows(1, 0..1)).await.unwrap();
    drop(stream);
    let stream = Stream::open(options(folder.path())).unwrap();
    stream.append(rows(2, 1..2)).await.unwrap();
    let arrivals: Vec<i64> = entries(&stream)
        .iter()
        .filter_map(|e| if let Entry::Mark(mark) = e { Some(mark.arrival_us) } else { None })
        .collect();
    assert_eq!(arrivals, [ahead, ahead]);
}

/// What happens to a stream.
#[derive(Debug, Clone)]
enum Step {
    Append { rows: i64, is_marked: bool },
    Reopen,
    Crash { tail: Vec<u8>, keep: prop::sample::Index },
}

fn any_step() -> impl Strategy<Value = Step> {
    let tail = prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..40);
    prop_oneof![
        6 => (1..60i64, prop::bool::weighted(0.6)).prop_map(|(rows, is_marked)| Step::Append { rows, is_marked }),
        1 => Just(Step::Reopen),
        2 => (tail, any::<prop::sample::Index>()).prop_map(|(tail, keep)| Step::Crash { tail, keep }),
    ]
}

/// Whatever was not fsynced may be cut anywhere and overwritten; what was stays.
fn crash(folder: &Path, durable: u64, tail: &[u8], keep: prop::sample::Index) {
    let base = segment::list(&RealDisk, folder).unwrap().pop().unwrap();
    let content = frames(folder, base)[0].2;
    let path = segment::path(folder, base);
    let mut bytes = fs::read(&path).unwrap();
    let safe = content.max(durable.saturating_sub(base)) as usize;
    bytes.truncate(safe + keep.index(bytes.len() - safe + 1));
    bytes.extend_from_slice(tail);
    fs::write(&path, bytes).unwrap();
}

async fn run_steps(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let folder = quick_folder();
    let options = StreamOptions { segment_bytes: 2500, ..options(folder.path()) };
    let mut stream = Stream::open(options.clone()).unwrap();
    let (mut marked, mut written, mut commit) = (0, 0, 1u128);
    for step in steps {
        match step {
            Step::Append { rows: count, is_marked } => {
                let append = rows(commit, written..written + count);
                written += count;
                if is_marked {
                    prop_assert!(stream.append(append).await.unwrap().is_some());
                    marked = written;
                    commit += 1;
                } else {
                    prop_assert!(stream.append(unmarked(append)).await.unwrap().is_none());
                }
            }
            Step::Reopen | Step::Crash { .. } => {
                let before = stream.last_mark();
                drop(stream);
                if let Step::Crash { tail, keep } = step {
                    let durable = before.as_ref().map_or(0, |mark| mark.at.0);
                    crash(&options.folder, durable, &tail, keep);
                }
                stream = Stream::open(options.clone()).unwrap();
                prop_assert_eq!(stream.last_mark(), before);
                written = marked;
            }
        }
        prop_assert_eq!(ids(&stream), all(0..marked));
        prop_assert_eq!(stream.last_mark().map_or(0, |mark| mark.totals.rows), marked as u64);
    }
    Ok(())
}

#[test]
fn nothing_acknowledged_is_ever_lost_and_nothing_else_appears() {
    crate::simulation::simulate(64, prop::collection::vec(any_step(), 1..40), |steps| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run_steps(steps))
    });
}

/// What a kill at a failpoint leaves: a copy of the folder is taken there.
#[cfg(feature = "failpoints")]
// trap: 6 (crash)
#[tokio::test]
async fn a_kill_at_a_failpoint_leaves_what_its_name_says() {
    for (name, expected) in [("stream-between-frames-and-mark", 10), ("stream-after-fsync", 20)] {
        let folder = quick_folder();
        let crashed = quick_folder();
        let options = options(folder.path());
        let stream = Stream::open(options.clone()).unwrap();
        stream.append(rows(1, 0..10)).await.unwrap();
        let (from, to) = (options.clone(), crashed.path().to_path_buf());
        // Other tests run through the failpoint too; a copy of ours harms nobody.
        let armed = AtomicU32::new(0);
        let content = stream.usage().bytes;
        fail::cfg_callback(name, move || {
            let base = segment::list(&RealDisk, &from.folder).unwrap_or_default();
            let has_more = base == [0] && frames(&from.folder, 0).last().is_some_and(|frame| frame.2 > content);
            if has_more && armed.fetch_add(1, Ordering::SeqCst) == 0 {
                copy(&from, &to);
            }
        })
        .unwrap();
        stream.append(rows(2, 10..20)).await.unwrap();
        fail::remove(name);
        let copied = StreamOptions { folder: crashed.path().join("task"), ..options };
        let last = frames(&copied.folder, 0).pop().unwrap();
        let is_mark = last.1.kind == frame::Kind::Mark;
        assert_eq!(is_mark, expected == 20, "{name}: the frames are in the file, the mark only where it should be");
        assert!(last.2 > content);
        assert_eq!(ids(&Stream::open(copied).unwrap()), all(0..expected));
    }
}

/// What `tests/fixtures/stream-v1` holds. Never change it: that format was written by a released Millrace.
fn fixture_appends() -> Vec<Append> {
    let mut second = rows(0x1_0000_0002, 10..300);
    second.filtered.insert("condition".into(), 3);
    let mut third = rows(0x1_0000_0003, 300..303);
    let order = Order { commit: 0x1_0000_0003, ordinal: 9 };
    third.changes.items.push(Change::Truncate { tables: vec![TableName::new("public", "items")], order });
    third.changes.items.push(Change::Ddl(Ddl::Evolved { table: table("items", 2), order }));
    vec![rows(0x1_0000_0001, 0..10), second, third]
}

#[tokio::test]
#[ignore = "writes the fixture of the current format version; run it once per version"]
async fn write_the_fixture() {
    let folder = TempDir::new().unwrap();
    let options = StreamOptions { shards: 2, segment_bytes: 6000, ..options(folder.path()) };
    let stream = Stream::open(options.clone()).unwrap();
    for append in fixture_appends() {
        stream.append(append).await.unwrap();
    }
    drop(stream);
    drop(Stream::open(options.clone()).unwrap());
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/stream-v{}", segment::VERSION));
    fs::create_dir_all(&to).unwrap();
    for path in segment_paths(&options.folder) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn a_log_of_version_1_is_read() {
    let folder = TempDir::new().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stream-v1");
    let options = copy(&StreamOptions { folder: from, ..options(folder.path()) }, folder.path());
    let stream = Stream::open(options).unwrap();
    let read = entries(&stream);
    let mut expected: Vec<ChangeBatch> = vec![];
    for append in fixture_appends() {
        expected.extend(
            append.changes.items.into_iter().filter_map(|c| if let Change::Rows(b) = c { Some(b) } else { None }),
        );
    }
    let batches: Vec<&ChangeBatch> =
        read.iter().filter_map(|e| if let Entry::Rows { batch, .. } = e { Some(batch) } else { None }).collect();
    assert_eq!(batches, expected.iter().collect::<Vec<_>>());
    assert!(read.iter().any(|e| matches!(e, Entry::Truncate { order, .. } if order.ordinal == 9)));
    assert!(
        read.iter()
            .any(|e| matches!(e, Entry::Ddl { ddl: Ddl::Evolved { table: t, .. }, .. } if *t == table("items", 2)))
    );
    let mark = stream.last_mark().unwrap();
    assert_eq!(mark.source, Position(0x1_0000_0004));
    assert_eq!((mark.totals.captured, mark.totals.filtered.get("condition"), mark.totals.rows), (303, Some(&3), 303));
    stream.append(rows(0x1_0000_0009, 303..304)).await.unwrap();
    assert_eq!(ids(&stream), all(0..304));
}
