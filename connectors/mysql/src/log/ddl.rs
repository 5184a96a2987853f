//! What a statement in the log does to which tables. No parser of the whole language: words, names, and the clauses of
//! ALTER TABLE. What is not understood counts as a change that is not applied, and the table is loaded anew.

use millrace_core::TableName;

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The table is empty now.
    Truncated(TableName),
    /// Its columns, or values without events of rows, may have changed.
    Altered(TableName),
    /// It is gone, or there is another one of this name.
    Replaced(TableName),
    /// All tables of the database are gone.
    Dropped(String),
    /// Rows were changed by a statement that the log has as such.
    Rows,
    /// A part of a transaction was taken back that the log has all the same.
    PartTakenBack,
}

/// A word, a name, a text or a sign.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A name or a keyword without quotes.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// A text or a number.
    Literal,
    /// Anything else.
    Sign(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own.eq_ignore_ascii_case(word))
    }
}

/// Splits a statement. Comments go, but for the executable ones (`/*! … */`, `/*M! … */`), of which the inside stays.
fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = vec![];
    let mut rest = sql.trim_start();
    while let Some(first) = rest.chars().next() {
        let behind = |end: &str, from: usize| rest[from..].find(end).map_or("", |at| &rest[from + at + end.len()..]);
        if let Some(inside) = rest.strip_prefix("/*M!").or_else(|| rest.strip_prefix("/*!")) {
            rest = inside.trim_start_matches(|c: char| c.is_ascii_digit());
        } else if rest.starts_with("/*") {
            rest = behind("*/", 2);
        } else if rest.starts_with("*/") {
            rest = &rest[2..];
        } else if first == '#' || (rest.starts_with("--") && rest[2..].starts_with(|c: char| c.is_whitespace())) {
            rest = behind("\n", 0);
        } else if matches!(first, '`' | '"' | '\'') {
            let (text, after) = quoted(rest, first);
            tokens.push(if first == '`' || first == '"' { Token::Quoted(text) } else { Token::Literal });
            rest = after;
        } else if first.is_alphanumeric() || matches!(first, '_' | '$' | '@') {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$' | '@'))).unwrap_or(rest.len());
            let word = &rest[..end];
            let number = word.chars().all(|c| c.is_ascii_digit());
            tokens.push(if number { Token::Literal } else { Token::Word(word.to_string()) });
            rest = &rest[end..];
        } else {
            tokens.push(Token::Sign(first));
            rest = &rest[first.len_utf8()..];
        }
        rest = rest.trim_start();
    }
    tokens
}

/// What stands between quotes, and what stands behind them.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote != '`' {
            chars.next();
        } else if c == quote {
            if chars.next_if(|(_, next)| *next == quote).is_none() {
                return (inside, &text[at + c.len_utf8()..]);
            }
            inside.push(quote);
        } else {
            inside.push(c);
        }
    }
    (inside, "")
}

/// The statement being read.
struct Statement<'a> {
    tokens: &'a [Token],
    schema: &'a str,
}

impl Statement<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.tokens.first().is_some_and(|token| token.is(word));
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn take_sign(&mut self, sign: char) -> bool {
        let found = self.tokens.first() == Some(&Token::Sign(sign));
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn word(&mut self) -> Option<String> {
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

    fn if_exists(&mut self) {
        if self.take("if") {
            let _ = (self.take("not"), self.take("exists"));
        }
    }
}

/// What the statement does, as far as it concerns tables. `schema` is the session's database.
pub fn effects(sql: &str, schema: &str) -> Vec<Effect> {
    let tokens = tokens(sql);
    let mut statement = Statement { tokens: &tokens, schema };
    let Some(verb) = statement.word() else { return vec![] };
    match verb.to_ascii_lowercase().as_str() {
        "truncate" => {
            let _ = statement.take("table");
            statement.table().map(Effect::Truncated).into_iter().collect()
        }
        "alter" => alter(&mut statement),
        "rename" if statement.take("table") || statement.take("tables") => renames(&mut statement),
        "drop" if statement.take("database") || statement.take("schema") => {
            statement.if_exists();
            statement.word().map(Effect::Dropped).into_iter().collect()
        }
        "drop" | "create" => {
            let _ = (statement.take("or"), statement.take("replace"));
            if statement.take("temporary") || !(statement.take("table") || statement.take("tables")) {
                return vec![];
            }
            let not_there = statement.take("if") && statement.take("not");
            let _ = statement.take("exists");
            let mut found = vec![];
            while let Some(table) = statement.table() {
                // A table that is there already stays as it is.
                found.extend((!not_there).then_some(Effect::Replaced(table)));
                if !statement.take_sign(',') {
                    break;
                }
            }
            found
        }
        "insert" | "update" | "delete" | "replace" | "load" | "call" | "with" => vec![Effect::Rows],
        "rollback" if statement.take("to") => vec![Effect::PartTakenBack],
        _ => vec![],
    }
}

fn renames(statement: &mut Statement<'_>) -> Vec<Effect> {
    statement.if_exists();
    let mut found = vec![];
    while let Some(from) = statement.table() {
        // MariaDB takes WAIT n and NOWAIT between the two.
        while !statement.tokens.is_empty() && !statement.take("to") {
            statement.tokens = &statement.tokens[1..];
        }
        let Some(to) = statement.table() else { break };
        found.extend([Effect::Replaced(from), Effect::Replaced(to)]);
        if !statement.take_sign(',') {
            break;
        }
    }
    found
}

fn alter(statement: &mut Statement<'_>) -> Vec<Effect> {
    let _ = (statement.take("online"), statement.take("ignore"));
    if !statement.take("table") {
        return vec![];
    }
    statement.if_exists();
    let Some(table) = statement.table() else { return vec![] };
    let mut found = vec![];
    for clause in clauses(statement.tokens) {
        let mut clause = Statement { tokens: clause, schema: statement.schema };
        if clause.take("rename") {
            let index = clause.take("index") || clause.take("key");
            let column = clause.take("column");
            let _ = clause.take("to") || clause.take("as");
            if column {
                found.push(Effect::Altered(table.clone()));
            } else if !index && let Some(to) = clause.table() {
                found.extend([Effect::Replaced(table.clone()), Effect::Replaced(to)]);
            }
        } else if !is_harmless(clause.tokens) {
            found.push(Effect::Altered(table.clone()));
        }
    }
    found.dedup();
    found
}

/// The clauses of ALTER TABLE: what stands between commas outside of parentheses.
fn clauses(tokens: &[Token]) -> Vec<&[Token]> {
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

/// Clauses that change neither columns nor values nor which rows there are.
fn is_harmless(clause: &[Token]) -> bool {
    let is =
        |index: usize, words: &[&str]| clause.get(index).is_some_and(|token| words.iter().any(|word| token.is(word)));
    // Table options need no commas between them.
    let engine = clause.iter().position(|token| token.is("engine"));
    let keeps_engine = |at: usize| {
        let behind = if clause.get(at + 1) == Some(&Token::Sign('=')) { at + 2 } else { at + 1 };
        is(behind, &["innodb", "rocksdb"])
    };
    // A foreign key may change rows without a word in the log.
    let acts = is(0, &["add"]) && clause.iter().any(|token| token.is("cascade") || token.is("set"));
    if acts || engine.is_some_and(|at| !keeps_engine(at)) {
        return false;
    }
    if is(0, &["add"]) {
        return is(1, &["index", "key", "unique", "fulltext", "spatial", "foreign", "check", "partition"])
            || (is(1, &["constraint"]) && clause.iter().all(|token| !token.is("primary")));
    }
    if is(0, &["drop"]) {
        return is(1, &["index", "key", "foreign", "check", "constraint"]);
    }
    let settings = [
        "algorithm",
        "lock",
        "comment",
        "auto_increment",
        "engine",
        "row_format",
        "force",
        "nowait",
        "wait",
        "analyze",
        "check",
        "optimize",
        "enable",
        "disable",
        "stats_persistent",
        "stats_auto_recalc",
        "stats_sample_pages",
        "key_block_size",
        "with",
        "without",
        "order",
        "validation",
        "rebuild",
    ];
    clause.is_empty() || is(0, &settings) || (is(0, &["alter"]) && is(1, &["index", "key", "check", "constraint"]))
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
            ("ALTER TABLE t ADD COLUMN c INT", altered.clone()),
            ("alter /* x */ table if exists `shop`.`t` drop c, add index (a, b)", altered.clone()),
            ("ALTER TABLE t RENAME COLUMN a TO b", altered.clone()),
            ("ALTER TABLE t ADD PRIMARY KEY (a)", altered.clone()),
            ("ALTER TABLE t DROP PARTITION p0", altered.clone()),
            ("ALTER TABLE t COMMENT='x' ENGINE=MyISAM", altered.clone()),
            ("ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES p (a) ON DELETE CASCADE", altered.clone()),
            ("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES p (a), ENGINE InnoDB", vec![]),
            ("/*!50100 ALTER TABLE t MODIFY c BIGINT */", altered),
            ("ALTER TABLE t ADD INDEX i (a, b), ALGORITHM=INPLACE, LOCK=NONE", vec![]),
            ("ALTER TABLE t ADD UNIQUE KEY u (a), RENAME INDEX a TO b", vec![]),
            ("ALTER TABLE t COMMENT='drop, add column c int'", vec![]),
            ("ALTER TABLE t RENAME TO u", vec![Effect::Replaced(t("shop", "t")), Effect::Replaced(t("shop", "u"))]),
            (
                "rename /* gh-ost */ table `shop`.`t` to `shop`.`_t_del`, `shop`.`_t_gho` to `shop`.`t`",
                ["t", "_t_del", "_t_gho", "t"].iter().map(|name| Effect::Replaced(t("shop", name))).collect(),
            ),
            (
                "DROP TABLE IF EXISTS `t`,`u` /* generated by server */",
                vec![Effect::Replaced(t("shop", "t")), Effect::Replaced(t("shop", "u"))],
            ),
            ("CREATE OR REPLACE TABLE t (a int)", vec![Effect::Replaced(t("shop", "t"))]),
            ("CREATE TABLE IF NOT EXISTS t (a int)", vec![]),
            ("CREATE DEFINER=`a`@`b` TRIGGER x BEFORE INSERT ON t FOR EACH ROW SET @a = 1", vec![]),
            ("DROP TEMPORARY TABLE IF EXISTS t", vec![]),
            ("drop database if exists `shop`", vec![Effect::Dropped("shop".into())]),
            ("INSERT INTO t VALUES (1)", vec![Effect::Rows]),
            ("ROLLBACK TO `s`", vec![Effect::PartTakenBack]),
            ("BEGIN", vec![]),
            ("FLUSH TABLES", vec![]),
        ] {
            assert_eq!(effects(sql, "shop"), expected, "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(sql in "(?s)(alter table |rename table |drop |/\\*!?|`|'|\"|\\\\|,|\\(|to |x|é|.){0,30}") {
            let _ = effects(&sql, "s");
        }
    }
}
