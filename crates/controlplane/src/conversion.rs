//! Reads and writes that need custom objects in other versions than they are kept in: the store
//! says what is missing, the webhook of the definition is asked without any lock, and the read or
//! write runs again.
//!
//! Source: kubernetes.io, "Versions in CustomResourceDefinitions", "Webhook conversion".

use std::sync::{Arc, Mutex, PoisonError};

use model::Timestamp;
use store::conversion::Conversions;
use store::names::uid;
use store::{Random, Reply, Request, Staged, Status, Store};

use crate::webhook::{Webhooks, find};
use crate::writer::{Shared, SystemRandom, WriteOptions, now};

/// How often a request runs again because something is missing. Each time brings what is missing,
/// a page of it at least, so that only a list that selects nearly nothing comes here.
const MAX_ROUNDS: usize = 256;

/// What asks webhooks for other versions.
pub(crate) struct Converter {
    shared: Arc<Shared>,
    webhooks: Arc<Webhooks>,
}

/// What a write that runs again has of before: it must come to the same, or what was converted for
/// it is not what it needs.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub conversions: Conversions,
    pub now: Timestamp,
    drawn: Arc<Mutex<Vec<u64>>>,
}

impl Attempt {
    fn begin() -> Self {
        Self { conversions: Conversions::default(), now: now(), drawn: Arc::default() }
    }

    /// The random numbers of the first run, as far as they go.
    pub fn random(&self) -> impl Random + use<> {
        Replayed { drawn: Arc::clone(&self.drawn), next: 0 }
    }
}

struct Replayed {
    drawn: Arc<Mutex<Vec<u64>>>,
    next: usize,
}

impl Random for Replayed {
    fn next_u64(&mut self) -> u64 {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let number = drawn.get(self.next).copied().unwrap_or_else(|| {
            let new = SystemRandom.next_u64();
            drawn.push(new);
            new
        });
        self.next += 1;
        number
    }
}

impl Converter {
    pub fn new(shared: Arc<Shared>, webhooks: Arc<Webhooks>) -> Arc<Self> {
        Arc::new(Self { shared, webhooks })
    }

    /// Reads the published state.
    pub async fn read<T>(
        &self,
        mut read: impl FnMut(&Store, &mut Conversions) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut conversions = Conversions::default();
        for _ in 0..MAX_ROUNDS {
            let found = read(&self.shared.read(), &mut conversions);
            if !conversions.is_wanting() {
                return found;
            }
            self.convert(&mut conversions).await?;
        }
        Err(too_many())
    }

    /// The same without asking anybody; `None` where a webhook is to convert something first.
    pub fn read_now<T>(
        &self,
        read: impl FnOnce(&Store, &mut Conversions) -> Result<T, Status>,
    ) -> Option<Result<T, Status>> {
        let mut conversions = Conversions::default();
        let found = read(&self.shared.read(), &mut conversions);
        (!conversions.is_wanting()).then_some(found)
    }

    /// Runs one write.
    pub async fn write(
        &self,
        request: Request,
        mut options: WriteOptions,
    ) -> Result<Staged, Status> {
        if request.resource.converter().is_none() {
            return self.shared.write(request, options).await;
        }
        let mut attempt = Attempt::begin();
        for _ in 0..MAX_ROUNDS {
            options.attempt = Some(attempt.clone());
            let staged = self.shared.write(request.clone(), options.clone()).await?;
            let Reply::Conversions(conversions) = staged.reply else { return Ok(staged) };
            attempt.conversions = *conversions;
            self.convert(&mut attempt.conversions).await?;
        }
        Err(too_many())
    }

    /// Asks webhooks for all that is missing.
    async fn convert(&self, conversions: &mut Conversions) -> Result<(), Status> {
        for batch in conversions.take_wanted() {
            let id = uid(&mut SystemRandom);
            let review = batch.review(&id)?;
            let callee = &batch.converter.callee;
            let target = find(&self.shared.read(), callee, SystemRandom.next_u64());
            let answer = self.webhooks.ask(callee, target, &review).await;
            let answer = answer.map_err(|why| batch.failure(why))?;
            let converted = batch.converted(&id, &answer)?;
            conversions.learn(&batch, converted);
        }
        Ok(())
    }
}

fn too_many() -> Status {
    Status::internal(format!(
        "objects were to be converted {MAX_ROUNDS} times over: ask for less of them, or in the \
         version that they are kept in"
    ))
}
