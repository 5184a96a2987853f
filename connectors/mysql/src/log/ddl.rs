//! What a statement in the log does to which tables. No parser of the whole language: words, names, and the clauses of
//! ALTER TABLE. What is not known to be harmless counts as a change that is not applied, and the tables that it may concern
//! are loaded anew.

use millrace_core::TableName;

use super::alter::{self, Step};

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The table is empty now.
    Truncated(TableName),
    /// Its columns, or values without events of rows, may have changed.
    Altered(TableName),
    /// Its columns changed, and nothing else.
    Reshaped(TableName, Vec<Step>),
    /// It is gone, or there is another one of this name.
    Replaced(TableName),
    /// It was made, unless it was there.
    Made(TableName),
    /// All tables of the database are gone.
    Dropped(String),
    /// Rows were changed by a statement that the log has as such.
    Rows,
    /// A place in a transaction got a name.
    Savepoint(String),
    /// What stands behind that place was rolled back, though the log has it.
    RolledBackTo(String),
    /// Nobody knows: any table may have changed.
    Unknown,
}

/// Stands in names for what was not text of ours. Such a name may be any that is not ASCII.
pub const UNREAD: char = char::REPLACEMENT_CHARACTER;

/// A word, a name, a text or a sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A name or a keyword without quotes.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// A text; what was escaped in it is [`UNREAD`].
    Text(String),
    /// Digits.
    Number(String),
    /// Anything else.
    Sign(char),
}

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own.eq_ignore_ascii_case(word))
    }
}

/// Splits a statement. Comments go, but for the executable ones (`/*! … */`, `/*M! … */`), of which the inside stays.
/// Nothing if a quote or a comment has no end.
fn tokens(sql: &str) -> Option<Vec<Token>> {
    let mut tokens = vec![];
    let mut rest = sql.trim_start();
    while let Some(first) = rest.chars().next() {
        let behind = |end: &str, from: usize| rest[from..].find(end).map(|at| &rest[from + at + end.len()..]);
        if let Some(inside) = rest.strip_prefix("/*M!").or_else(|| rest.strip_prefix("/*!")) {
            rest = inside.trim_start_matches(|c: char| c.is_ascii_digit());
        } else if rest.starts_with("/*") {
            rest = behind("*/", 2)?;
        } else if rest.starts_with("*/") {
            rest = &rest[2..];
        } else if first == '#' || (rest.starts_with("--") && rest[2..].starts_with(|c: char| c.is_whitespace())) {
            rest = behind("\n", 0).unwrap_or_default();
        } else if matches!(first, '`' | '"' | '\'') {
            let (text, after) = quoted(rest, first)?;
            tokens.push(if first == '\'' { Token::Text(text) } else { Token::Quoted(text) });
            rest = after;
        } else if is_of_word(first) {
            let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
            let word = &rest[..end];
            let number = word.chars().all(|c| c.is_ascii_digit());
            tokens.push(if number { Token::Number(word.into()) } else { Token::Word(word.into()) });
            rest = &rest[end..];
        } else {
            tokens.push(Token::Sign(first));
            rest = &rest[first.len_utf8()..];
        }
        rest = rest.trim_start();
    }
    Some(tokens)
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '@' | UNREAD)
}

/// What stands between quotes, and what stands behind them.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote != '`' {
            chars.next();
            (quote == '\'').then(|| inside.push(UNREAD));
        } else if c == quote {
            if chars.next_if(|(_, next)| *next == quote).is_none() {
                return Some((inside, &text[at + c.len_utf8()..]));
            }
            inside.push(quote);
        } else {
            inside.push(c);
        }
    }
    None
}

/// The statement being read.
pub(super) struct Statement<'a> {
    pub(super) tokens: &'a [Token],
    pub(super) schema: &'a str,
}

impl Statement<'_> {
    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.tokens.first().is_some_and(|token| token.is(word));
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    pub(super) fn take_sign(&mut self, sign: char) -> bool {
        let found = self.tokens.first() == Some(&Token::Sign(sign));
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    pub(super) fn word(&mut self) -> Option<String> {
        let (Token::Word(name) | Token::Quoted(name)) = self.tokens.first()? else { return None };
        self.tokens = &self.tokens[1..];
        Some(name.clone())
    }

    fn table(&mut self) -> Option<TableName> {
        let first = self.word()?;
        if self.take_sign('.') {
            return Some(TableName::new(first, self.word()?));
        }
        Some(TableName::new(self.schema, first))
    }

    pub(super) fn take_any(&mut self, words: &[&str]) -> bool {
        words.iter().any(|word| self.take(word))
    }

    pub(super) fn skip(&mut self) {
        self.tokens = self.tokens.get(1..).unwrap_or_default();
    }

    /// Gives whether it is `IF NOT EXISTS`.
    pub(super) fn if_exists(&mut self) -> bool {
        if !self.take("if") {
            return false;
        }
        let not_there = self.take("not");
        let _ = self.take("exists");
        not_there
    }

    /// What stands between parentheses, with them; nothing if they do not end.
    pub(super) fn skip_parentheses(&mut self) -> Option<()> {
        let mut depth = 0_i32;
        let end = self.tokens.iter().position(|token| {
            depth += i32::from(*token == Token::Sign('(')) - i32::from(*token == Token::Sign(')'));
            depth == 0
        });
        self.tokens = self.tokens.get(end? + 1..)?;
        Some(())
    }

    /// Whether `IF EXISTS` stands here.
    pub(super) fn if_exists_is_said(&self) -> bool {
        self.tokens.first().is_some_and(|token| token.is("if"))
    }

    /// MariaDB's `WAIT n` and `NOWAIT`.
    fn wait(&mut self) {
        if self.take("wait") {
            self.skip();
        }
        let _ = self.take("nowait");
    }

    /// MariaDB's `SET STATEMENT variable = value, … FOR`. Gives false if it does not end.
    fn set_statement(&mut self) -> bool {
        let is = |index: usize, word: &str| self.tokens.get(index).is_some_and(|token| token.is(word));
        if !(is(0, "set") && is(1, "statement")) {
            return true;
        }
        let end = self.tokens.iter().position(|token| token.is("for"));
        self.tokens = end.and_then(|end| self.tokens.get(end + 1..)).unwrap_or_default();
        end.is_some()
    }

    /// What may stand between CREATE, ALTER or DROP and the kind of thing. Gives whether it is `OR REPLACE`.
    fn attributes(&mut self) -> bool {
        let mut replaces = false;
        loop {
            if self.take("or") {
                replaces |= self.take("replace");
            } else if self.take_any(&["definer", "algorithm"]) {
                let _ = self.take_sign('=');
                self.skip();
                // The rest of `a`@`b`, or of CURRENT_USER().
                while matches!(self.tokens.first(), Some(Token::Sign('(' | ')'))) {
                    self.skip();
                }
                if let Some(Token::Word(at)) = self.tokens.first()
                    && at.starts_with('@')
                {
                    let is_whole = at.len() > 1;
                    self.skip();
                    (!is_whole).then(|| self.skip());
                }
            } else if self.take("sql") {
                let _ = (self.take("security"), self.skip());
            } else if !self.take_any(&ATTRIBUTES) {
                return replaces;
            }
        }
    }
}

/// Words before the kind of thing that change nothing of what is done with it here.
const ATTRIBUTES: [&str; 11] = [
    "aggregate",
    "online",
    "offline",
    "unique",
    "fulltext",
    "spatial",
    "vector",
    "undo",
    "json",
    "relational",
    "duality",
];

/// Things that hold no rows of captured tables. (What triggers and functions change is in the log by itself.)
const HARMLESS: [&str; 16] = [
    "view",
    "trigger",
    "procedure",
    "function",
    "library",
    "event",
    "user",
    "role",
    "server",
    "sequence",
    "package",
    "tablespace",
    "logfile",
    "instance",
    "resource",
    "reference",
];

/// What the statement does, as far as it concerns tables. `schema` is the session's database.
pub fn effects(sql: &str, schema: &str) -> Vec<Effect> {
    let Some(tokens) = tokens(sql) else { return vec![Effect::Unknown] };
    let mut statement = Statement { tokens: &tokens, schema };
    if tokens.is_empty() {
        return vec![];
    }
    let is_whole = statement.set_statement();
    let Some(verb) = statement.word().filter(|_| is_whole) else { return vec![Effect::Unknown] };
    let found = match verb.to_ascii_lowercase().as_str() {
        "truncate" => {
            let _ = statement.take("table");
            statement.table().map(|table| vec![Effect::Truncated(table)])
        }
        "alter" => alter(&mut statement),
        "rename" if statement.take_any(&["table", "tables"]) => renames(&mut statement),
        "rename" if statement.take("user") => Some(vec![]),
        "drop" => drops(&mut statement),
        "create" => creates(&mut statement),
        "insert" | "update" | "delete" | "replace" | "load" | "call" | "with" | "select" | "do" | "values"
        | "handler" | "execute" => Some(vec![Effect::Rows]),
        "savepoint" => statement.word().map(|name| vec![Effect::Savepoint(name)]),
        "rollback" if statement.take("to") => {
            let _ = statement.take("savepoint");
            statement.word().map(|name| vec![Effect::RolledBackTo(name)])
        }
        "set" if statement.take_any(&["password", "default", "role", "resource"]) => Some(vec![]),
        "begin" | "commit" | "release" | "analyze" | "optimize" | "check" | "checksum" | "repair" | "flush"
        | "grant" | "revoke" | "install" | "uninstall" | "reset" | "purge" | "change" => Some(vec![]),
        _ => None,
    };
    found.unwrap_or_else(|| vec![Effect::Unknown])
}

/// Tables in a row; nothing if there is none, or one is none.
fn tables(statement: &mut Statement<'_>) -> Option<Vec<TableName>> {
    let mut found = vec![statement.table()?];
    while statement.take_sign(',') {
        found.push(statement.table()?);
    }
    Some(found)
}

fn drops(statement: &mut Statement<'_>) -> Option<Vec<Effect>> {
    statement.attributes();
    if statement.take("temporary") {
        return Some(vec![]);
    }
    if statement.take_any(&["table", "tables"]) {
        statement.if_exists();
        return Some(tables(statement)?.into_iter().map(Effect::Replaced).collect());
    }
    if statement.take_any(&["database", "schema"]) {
        statement.if_exists();
        return Some(vec![Effect::Dropped(statement.word()?)]);
    }
    if statement.take("index") {
        statement.if_exists();
        let name = statement.word()?;
        let table = Some(statement.take("on")).filter(|on| *on).and_then(|_| statement.table())?;
        return Some(if is_primary(&name) { vec![Effect::Altered(table)] } else { vec![] });
    }
    statement.take_any(&HARMLESS).then(Vec::new)
}

fn creates(statement: &mut Statement<'_>) -> Option<Vec<Effect>> {
    let replaces = statement.attributes();
    if statement.take("temporary") {
        return Some(vec![]);
    }
    if statement.take("table") {
        // A table that is there already stays as it is.
        let not_there = statement.if_exists();
        let table = statement.table()?;
        return Some(vec![if not_there { Effect::Made(table) } else { Effect::Replaced(table) }]);
    }
    if statement.take_any(&["database", "schema"]) {
        statement.if_exists();
        let name = statement.word()?;
        return Some(if replaces { vec![Effect::Dropped(name)] } else { vec![] });
    }
    (statement.take("index") || statement.take_any(&HARMLESS)).then(Vec::new)
}

fn renames(statement: &mut Statement<'_>) -> Option<Vec<Effect>> {
    statement.if_exists();
    let mut found = vec![];
    loop {
        let from = statement.table()?;
        statement.wait();
        if !statement.take("to") {
            return None;
        }
        found.extend([Effect::Replaced(from), Effect::Replaced(statement.table()?)]);
        if !statement.take_sign(',') {
            return Some(found);
        }
    }
}

fn alter(statement: &mut Statement<'_>) -> Option<Vec<Effect>> {
    statement.attributes();
    // Rows that a new key does not allow go without a word.
    let ignores = statement.take("ignore");
    if !statement.take("table") {
        if statement.take_any(&["database", "schema"]) {
            return statement.tokens.iter().all(|token| !token.is("upgrade")).then(Vec::new);
        }
        return statement.take_any(&HARMLESS).then(Vec::new);
    }
    statement.if_exists();
    let table = statement.table()?;
    statement.wait();
    let mut found = if ignores { vec![Effect::Altered(table.clone())] } else { vec![] };
    let mut steps = vec![];
    for clause in clauses(statement.tokens) {
        if is_harmless(clause) {
            continue;
        }
        if let Some(step) = alter::steps(clause) {
            steps.extend(step);
            continue;
        }
        let mut clause = Statement { tokens: clause, schema: statement.schema };
        if clause.take("rename") {
            let index = clause.take_any(&["index", "key"]);
            let column = clause.take("column");
            let _ = clause.take_any(&["to", "as"]);
            if column {
                found.push(Effect::Altered(table.clone()));
            } else if !index {
                found.extend([Effect::Replaced(table.clone()), Effect::Replaced(clause.table()?)]);
            }
            continue;
        }
        found.push(Effect::Altered(table.clone()));
        // Another one takes part: EXCHANGE PARTITION … WITH TABLE, CONVERT TABLE, CONVERT PARTITION … TO TABLE.
        while !clause.tokens.is_empty() {
            if clause.take("table") {
                found.push(Effect::Replaced(clause.table()?));
            }
            clause.skip();
        }
    }
    found.dedup();
    // What is not followed is loaded anew, with the columns that it has then. Servers do not agree in which order they look
    // whether a column is there.
    let is_plain = steps.len() == 1 || !steps.iter().any(Step::is_conditional);
    if !steps.is_empty() && found.is_empty() && is_plain {
        found.push(Effect::Reshaped(table, steps));
    } else if !steps.is_empty() && !found.contains(&Effect::Altered(table.clone())) {
        found.insert(0, Effect::Altered(table));
    }
    Some(found)
}

/// The clauses of ALTER TABLE: what stands between commas outside of parentheses.
pub(super) fn clauses(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut depth, mut start, mut found) = (0_i32, 0, vec![]);
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth -= 1,
            Token::Sign(',') if depth == 0 => {
                found.push(&tokens[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    found.push(&tokens[start..]);
    found
}

fn is_primary(name: &str) -> bool {
    name.eq_ignore_ascii_case("primary")
}

/// Clauses that change neither columns nor keys nor values nor which rows there are.
fn is_harmless(clause: &[Token]) -> bool {
    let is =
        |index: usize, words: &[&str]| clause.get(index).is_some_and(|token| words.iter().any(|word| token.is(word)));
    let names_primary = |token: &Token| matches!(token, Token::Word(name) | Token::Quoted(name) if is_primary(name));
    // A foreign key may change rows without a word in the log.
    let acts = is(0, &["add"]) && clause.iter().any(|token| token.is("cascade") || token.is("set"));
    if acts || clause.iter().any(names_primary) {
        return false;
    }
    let adds = ["index", "key", "unique", "fulltext", "spatial", "foreign", "check", "partition", "constraint"];
    (is(0, &["add"]) && is(1, &adds))
        || (is(0, &["drop"]) && is(1, &["index", "key", "foreign", "check", "constraint"]))
        || (is(0, &["alter"]) && is(1, &["index", "key", "check", "constraint"]))
        || (is(0, &["analyze", "check", "optimize", "repair", "rebuild"]) && is(1, &["partition"]))
        || (is(0, &["enable", "disable"]) && is(1, &["keys"]))
        || (is(0, &["with", "without"]) && is(1, &["validation"]))
        || (is(0, &["order"]) && is(1, &["by"]))
        || (is(0, &["force"]) && clause.len() == 1)
        || is_options(Statement { tokens: clause, schema: "" })
}

/// Options of a table: words with a value each, one behind the other.
fn is_options(mut rest: Statement<'_>) -> bool {
    let options = [
        "algorithm",
        "lock",
        "comment",
        "auto_increment",
        "row_format",
        "key_block_size",
        "stats_persistent",
        "stats_auto_recalc",
        "stats_sample_pages",
        "page_compressed",
        "page_compression_level",
        "compression",
        "encryption",
        "encrypted",
        "encryption_key_id",
        "checksum",
        "max_rows",
        "min_rows",
        "avg_row_length",
    ];
    while !rest.tokens.is_empty() {
        let is_engine = rest.take("engine");
        if !is_engine && !rest.take_any(&options) {
            return false;
        }
        let _ = rest.take_sign('=');
        // Another engine may be one without transactions.
        if is_engine && !rest.tokens.first().is_some_and(|token| token.is("innodb") || token.is("rocksdb")) {
            return false;
        }
        rest.skip();
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statements_tell_what_they_do() {
        let t = |schema: &str, name: &str| TableName::new(schema, name);
        let altered = vec![Effect::Altered(t("shop", "t"))];
        for (sql, expected) in [
            ("TRUNCATE t", vec![Effect::Truncated(t("shop", "t"))]),
            ("truncate table `other`.`a``b`", vec![Effect::Truncated(t("other", "a`b"))]),
            ("ALTER TABLE t ADD COLUMN c INT, MODIFY b BIGINT AUTO_INCREMENT", altered.clone()),
            (
                "alter /* x */ table if exists `shop`.`t` drop c, add index (a, b)",
                vec![Effect::Reshaped(t("shop", "t"), vec![Step::Drop { name: "c".into(), if_there: false }])],
            ),
            ("ALTER TABLE t ADD PRIMARY KEY (a)", altered.clone()),
            ("ALTER TABLE t DROP PARTITION p0", altered.clone()),
            ("ALTER TABLE t COMMENT='x' ENGINE=MyISAM", altered.clone()),
            ("ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES p (a) ON DELETE CASCADE", altered.clone()),
            ("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES p (a), ENGINE InnoDB", vec![]),
            ("/*!50100 ALTER TABLE t DROP PARTITION p */", altered),
            ("ALTER TABLE t ADD INDEX i (a, b), ALGORITHM=INPLACE, LOCK=NONE", vec![]),
            ("ALTER TABLE t ADD UNIQUE KEY u (a), RENAME INDEX a TO b", vec![]),
            ("ALTER TABLE t COMMENT='drop, add column c int'", vec![]),
            ("ALTER TABLE t RENAME TO u", vec![Effect::Replaced(t("shop", "t")), Effect::Replaced(t("shop", "u"))]),
            (
                "ALTER TABLE t DROP c, RENAME TO u",
                [Effect::Altered, Effect::Replaced]
                    .map(|e| e(t("shop", "t")))
                    .into_iter()
                    .chain([Effect::Replaced(t("shop", "u"))])
                    .collect(),
            ),
            (
                "rename /* gh-ost */ table `shop`.`t` to `shop`.`_t_del`, `shop`.`_t_gho` to `shop`.`t`",
                ["t", "_t_del", "_t_gho", "t"].iter().map(|name| Effect::Replaced(t("shop", name))).collect(),
            ),
            (
                "DROP TABLE IF EXISTS `t`,`u` /* generated by server */",
                vec![Effect::Replaced(t("shop", "t")), Effect::Replaced(t("shop", "u"))],
            ),
            ("CREATE OR REPLACE TABLE t (a int)", vec![Effect::Replaced(t("shop", "t"))]),
            ("CREATE TABLE IF NOT EXISTS t (a int)", vec![Effect::Made(t("shop", "t"))]),
            ("CREATE DEFINER=`a`@`b` TRIGGER x BEFORE INSERT ON t FOR EACH ROW SET @a = 1", vec![]),
            ("DROP TEMPORARY TABLE IF EXISTS t", vec![]),
            ("drop database if exists `shop`", vec![Effect::Dropped("shop".into())]),
            ("INSERT INTO t VALUES (1)", vec![Effect::Rows]),
            ("ROLLBACK TO `s`", vec![Effect::RolledBackTo("s".into())]),
            ("BEGIN", vec![]),
            ("FLUSH TABLES", vec![]),
        ] {
            assert_eq!(effects(sql, "shop"), expected, "{sql}");
        }
    }

    #[test]
    fn what_is_not_known_to_be_harmless_counts() {
        let t = |name: &str| TableName::new("shop", name);
        let (altered, unknown) = (vec![Effect::Altered(t("t"))], vec![Effect::Unknown]);
        let exchanged = vec![Effect::Altered(t("t")), Effect::Replaced(t("u"))];
        for (sql, expected) in [
            ("SET STATEMENT lock_wait_timeout=5, a='for' FOR TRUNCATE TABLE t", vec![Effect::Truncated(t("t"))]),
            ("set statement a=1 for alter table t convert to character set latin1", altered.clone()),
            ("SET STATEMENT max_statement_time=9 FOR UPDATE t SET a = 1", vec![Effect::Rows]),
            ("set statement a=1", unknown.clone()),
            ("SELECT `shop`.`f`(77)", vec![Effect::Rows]),
            ("(SELECT 1)", unknown.clone()),
            ("ALTER TABLE t WAIT 5 DROP PARTITION p0", altered.clone()),
            ("ALTER TABLE t NOWAIT ADD INDEX (a)", vec![]),
            ("ALTER TABLE t EXCHANGE PARTITION p0 WITH TABLE u WITHOUT VALIDATION", exchanged.clone()),
            ("ALTER TABLE t CONVERT PARTITION p0 TO TABLE u", exchanged.clone()),
            ("ALTER TABLE t CONVERT TABLE `u` TO PARTITION p VALUES LESS THAN (5)", exchanged),
            ("DROP INDEX `PRIMARY` ON t", altered.clone()),
            ("DROP INDEX IF EXISTS i ON t WAIT 3", vec![]),
            ("ALTER TABLE t DROP INDEX `PRIMARY`", altered.clone()),
            ("ALTER TABLE t DROP CONSTRAINT `primary`", altered.clone()),
            ("ALTER TABLE t ADD CONSTRAINT c PRIMARY KEY (a)", altered.clone()),
            ("ALTER IGNORE TABLE t ADD UNIQUE (a)", altered.clone()),
            ("ALTER TABLE t ENGINE=MyISAM", altered.clone()),
            ("ALTER TABLE t COMMENT='x' ENGINE = InnoDB ROW_FORMAT=dynamic, FORCE", vec![]),
            ("ALTER TABLE t COMMENT='x' ENGINE=Aria", altered.clone()),
            ("ALTER TABLE t CHECK PARTITION p0, DISABLE KEYS, ORDER BY a", vec![]),
            ("ALTER TABLE t IMPORT TABLESPACE", altered.clone()),
            ("ALTER TABLE t FROBNICATE", altered),
            ("ALTER DATABASE d CHARACTER SET utf8mb4", vec![]),
            ("ALTER DEFINER=`a`@`%` EVENT e ENABLE", vec![]),
            ("ALTER FROB t", unknown.clone()),
            ("FROBNICATE t", unknown.clone()),
            ("CREATE FROB t", unknown.clone()),
            ("ALTER TABLE t COMMENT 'it ends nowhere", unknown.clone()),
            ("ALTER TABLE t /* it ends nowhere", unknown),
            ("CREATE OR REPLACE DATABASE shop", vec![Effect::Dropped("shop".into())]),
            ("CREATE DATABASE IF NOT EXISTS shop", vec![]),
            ("CREATE UNIQUE INDEX i ON t (a)", vec![]),
            (
                "CREATE OR REPLACE ALGORITHM=MERGE DEFINER=root@localhost SQL SECURITY DEFINER VIEW v AS SELECT 1",
                vec![],
            ),
            ("CREATE DEFINER=CURRENT_USER() FUNCTION f() RETURNS int RETURN 1", vec![]),
            ("CREATE DEFINER='a'@'b' AGGREGATE FUNCTION f() RETURNS int RETURN 1", vec![]),
            ("SET PASSWORD FOR 'a'@'%' = 'x'", vec![]),
            ("SAVEPOINT `s 1`", vec![Effect::Savepoint("s 1".into())]),
            ("ROLLBACK TO SAVEPOINT s", vec![Effect::RolledBackTo("s".into())]),
            ("# a dummy event", vec![]),
        ] {
            assert_eq!(effects(sql, "shop"), expected, "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(sql in "(?s)(alter table |rename table |drop |add |modify |default |column t int|enum|first|/\\*!?|`|'|\"|\\\\|,|\\(|to |x|é|.){0,30}") {
            let _ = effects(&sql, "s");
        }
    }
}
