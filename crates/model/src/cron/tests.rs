use super::*;

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a time")
}

/// The next times after `from`, in UTC.
fn times(schedule: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let schedule = Schedule::parse(schedule).expect("a schedule");
    let zone = Zone::named(zone).expect("a zone");
    let next = |time: &Timestamp| schedule.next(*time, &zone);
    let times = std::iter::successors(next(&at(from)), next).take(count);
    times.map(|time| time.to_string()).collect()
}

#[test]
fn the_next_time_is_after_and_never_at_the_given_one() {
    for (schedule, from, wanted) in [
        ("* * * * *", "2026-11-22T04:00:00Z", "2026-11-22T04:01:00Z"),
        ("* * * * *", "2026-11-22T04:00:59.9Z", "2026-11-22T04:01:00Z"),
        ("*/15 * * * *", "2026-11-22T04:50:00Z", "2026-11-22T05:00:00Z"),
        ("7/20 * * * *", "2026-11-22T04:00:00Z", "2026-11-22T04:07:00Z"),
        ("30 6-16/4 * * 1-5", "2026-11-20T14:30:00Z", "2026-11-23T06:30:00Z"),
        ("0 0 29 feb *", "2026-11-22T04:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 12 * JAN,jul ?", "2026-11-22T04:00:00Z", "2027-01-01T12:00:00Z"),
        ("0 0 1,15 * *", "2026-11-22T04:00:00Z", "2026-12-01T00:00:00Z"),
        ("0 0 * * sun", "2026-11-22T04:00:00Z", "2026-11-29T00:00:00Z"),
        ("59 23 31 12 *", "2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z"),
        // Day and weekday, both restricted: either is enough.
        ("0 0 13 * fri", "2026-11-07T00:00:00Z", "2026-11-13T00:00:00Z"),
        ("0 0 13 * fri", "2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z"),
        ("0 0 */2 * fri", "2026-11-13T00:00:00Z", "2026-11-15T00:00:00Z"),
        // One of them unrestricted: the other decides.
        ("0 0 */1 * fri", "2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z"),
        ("@yearly", "2026-11-22T04:00:00Z", "2027-01-01T00:00:00Z"),
        ("@monthly", "2026-11-22T04:00:00Z", "2026-12-01T00:00:00Z"),
        ("@weekly", "2026-11-22T04:00:00Z", "2026-11-29T00:00:00Z"),
        ("@midnight", "2026-11-22T04:00:00Z", "2026-11-23T00:00:00Z"),
        ("@hourly", "2026-11-22T04:00:00Z", "2026-11-22T05:00:00Z"),
        ("@every 1h30m", "2026-11-22T04:00:05.5Z", "2026-11-22T05:30:05Z"),
        ("@every 1.5s", "2026-11-22T04:00:05Z", "2026-11-22T04:00:06Z"),
        ("@every 1ms", "2026-11-22T04:00:05Z", "2026-11-22T04:00:06Z"),
        ("@every -1h", "2026-11-22T04:00:05Z", "2026-11-22T04:00:06Z"),
    ] {
        assert_eq!(times(schedule, "UTC", from, 1), [wanted], "{schedule} after {from}");
    }
}

#[test]
fn a_time_that_never_comes_is_looked_for_five_years() {
    for never in ["59 23 31 2 *", ", * * * *", "0 , * * *", "0 0 , * *", "0 0 * , *"] {
        assert_eq!(times(never, "UTC", "2026-11-22T04:00:00Z", 1), [""; 0], "{never}");
    }
}

#[test]
fn clocks_that_change_skip_and_repeat_times() {
    // In Berlin 02:00 to 03:00 is left out in March, and comes twice in October.
    let night = times("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 2);
    assert_eq!(night, ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"]);
    let twice = times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 3);
    assert_eq!(twice, ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"]);
    let hours = times("0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", 2);
    assert_eq!(hours, ["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"]);
    let day = times("0 0 * * *", "America/New_York", "2026-11-01T03:00:00Z", 2);
    assert_eq!(day, ["2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"]);
    let half = times("0 9 * * *", "Asia/Kolkata", "2026-11-22T04:00:00Z", 1);
    assert_eq!(half, ["2026-11-23T03:30:00Z"]);
}

#[test]
fn refusals_are_in_the_words_of_the_library() {
    for (text, wanted) in [
        ("", "empty spec string"),
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
        ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
        (
            "99999999999999999999 * * * *",
            "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \
             \"99999999999999999999\": value out of range",
        ),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* 24 * * *", "end of range (24) above maximum (23): 24"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("* * * 13 *", "end of range (13) above maximum (12): 13"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("1/2/3 * * * *", "too many slashes: 1/2/3"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("*/-5 * * * *", "negative number (-5) not allowed: -5"),
        ("@fortnightly", "unrecognized descriptor: @fortnightly"),
        ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
        (
            "@every 5y",
            "failed to parse duration @every 5y: time: unknown unit \"y\" in duration \"5y\"",
        ),
        ("@every .s", "failed to parse duration @every .s: time: invalid duration \".s\""),
        ("@every ", "failed to parse duration @every : time: invalid duration \"\""),
    ] {
        let error = Schedule::parse(text).expect_err(text);
        assert_eq!(error.to_string(), wanted, "{text}");
    }
}

#[test]
fn zones_are_those_of_the_database_written_as_there() {
    for name in ["UTC", "Etc/UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"] {
        assert!(Zone::named(name).is_some(), "{name}");
    }
    for name in ["", "Local", "europe/berlin", "Europe/Atlantis", "../UTC"] {
        assert_eq!(Zone::named(name), None, "{name}");
    }
    let time = at("2026-07-01T10:00:00Z");
    assert_eq!(Zone::UTC.rfc3339(time), "2026-07-01T10:00:00Z");
    let berlin = Zone::named("Europe/Berlin").expect("a zone");
    assert_eq!(berlin.rfc3339(time), "2026-07-01T12:00:00+02:00");
}

#[test]
fn nothing_panics_on_odd_texts() {
    let pieces =
        ["*", "?", "-", "/", ",", "5", "99", "-1", "mon", "@every ", "1.5h", "\u{b5}s", " "];
    let mut texts = vec![String::new()];
    for _ in 0..4 {
        let longer = |text: &String| pieces.map(|piece| format!("{text}{piece}"));
        texts = texts.iter().flat_map(longer).collect();
        for text in &texts {
            let _ = Schedule::parse(text);
            let _ = Schedule::parse(&format!("{text} * * * *"));
        }
    }
}
