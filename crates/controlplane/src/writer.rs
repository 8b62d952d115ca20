//! The one writer: a thread that stages, commits and publishes, batch by batch.
//!
//! All requests that arrive while a commit runs make the next batch (group commit), so that the
//! disk's latency bounds a single client only. Nothing is visible before it is durable, and
//! nothing is answered before it is visible. Answers and wake-ups are the runtime's own: from
//! another thread each of them would be a system call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use model::Timestamp;
use store::webhooks::Admission;
use store::{Context, FieldValidation, Random, Record, Request, Staged, Status, Store};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::conversion::Attempt;
use crate::disk::Disk;
use crate::tls::User;

/// Writes that wait for the writer. Further ones wait in their connections.
const QUEUE_REQUESTS: usize = 1_024;
/// Writes that share a commit: bounds the time that the store is locked.
const BATCH_REQUESTS: usize = 256;
/// Published batches whose answers are still to be given. The writer waits at the limit.
const QUEUE_OUTCOMES: usize = 64;
/// Stack of the writer's thread, bytes: JSON of the permitted depth is walked on it.
const STACK_BYTES: usize = 1 << 20;

/// The store as all requests share it: reads directly, writes through the writer.
pub(crate) struct Shared {
    store: RwLock<Store>,
    waiting: Arc<Waiting>,
    queue: mpsc::Sender<Job>,
}

/// What a write comes with, beyond its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteOptions {
    /// Who asks; `None` for the server itself.
    pub user: Option<User>,
    /// As whom it owns what it writes.
    pub manager: String,
    /// Why it may not create what the request names, if so.
    pub create_refusal: Option<Status>,
    /// Whether nothing shall be stored.
    pub dry_run: bool,
    /// What is wrong with the body's fields.
    pub validation: FieldValidation,
    /// How far it goes.
    pub admission: Admission,
    /// What it has of being run before, where webhooks convert for it.
    pub attempt: Option<Attempt>,
}

/// One write on its way.
struct Job {
    request: Request,
    options: WriteOptions,
    answer: oneshot::Sender<Result<Staged, Status>>,
}

impl Shared {
    /// Starts the writer's thread, within a runtime. It ends, with everything committed, when the
    /// last [`Shared`] is gone, and the receiver resolves then. `dropped` are log entries to forget.
    pub fn start(
        store: Store,
        disk: Disk,
        dropped: Vec<u64>,
    ) -> std::io::Result<(Arc<Self>, oneshot::Receiver<()>)> {
        let (queue, jobs) = mpsc::channel(QUEUE_REQUESTS);
        let (outcomes, published) = mpsc::channel(QUEUE_OUTCOMES);
        let waiting = Arc::<Waiting>::default();
        tokio::spawn(tell(published, Arc::clone(&waiting)));
        let shared = Arc::new(Self { store: RwLock::new(store), waiting, queue });
        let (stop, stopped) = oneshot::channel();
        // The thread may not keep the queue alive that it waits on.
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("store-writer".to_owned()).stack_size(STACK_BYTES).spawn(
            move || {
                let mut writer = Writer { jobs, outcomes, disk, dropped };
                while let Some(batch) = writer.next_batch() {
                    // Whoever waits for an answer holds the store.
                    let Some(shared) = weak.upgrade() else { break };
                    writer.run(&shared, batch);
                }
                // The file is free before anybody hears that the writer has ended.
                drop(writer);
                let _ = stop.send(());
            },
        )?;
        Ok((shared, stopped))
    }

    /// The published state.
    pub fn read(&self) -> RwLockReadGuard<'_, Store> {
        // A panic elsewhere leaves published state whole: publishing is the writer's alone.
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one write, and returns when it is durable and visible.
    pub async fn write(&self, request: Request, options: WriteOptions) -> Result<Staged, Status> {
        let (answer, answered) = oneshot::channel();
        let job = Job { request, options, answer };
        let stopping = || Status::failure(503, "ServiceUnavailable", "the server is shutting down");
        self.queue.send(job).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    /// What tells when a storage changes. Begin to wait before the store is read.
    pub fn changes(&self, storage: &'static str) -> Arc<Notify> {
        self.waiting.on(storage)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Store> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits for a storage to change.
#[derive(Default)]
struct Waiting(Mutex<BTreeMap<&'static str, Arc<Notify>>>);

impl Waiting {
    fn on(&self, storage: &'static str) -> Arc<Notify> {
        let mut storages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(storages.entry(storage).or_default())
    }
}

/// What a batch came to.
struct Outcome {
    answers: Vec<Answer>,
    /// The storages that changed.
    storages: Vec<&'static str>,
}

/// Gives answers, and wakes those who wait for storages. Ends with the writer.
async fn tell(mut published: mpsc::Receiver<Outcome>, waiting: Arc<Waiting>) {
    while let Some(outcome) = published.recv().await {
        for (answer, result) in outcome.answers {
            // A client that went away needs no answer.
            let _ = answer.send(result);
        }
        for storage in outcome.storages {
            waiting.on(storage).notify_waiters();
        }
    }
}

struct Writer {
    jobs: mpsc::Receiver<Job>,
    outcomes: mpsc::Sender<Outcome>,
    disk: Disk,
    /// Log entries that left the watch windows since the last commit.
    dropped: Vec<u64>,
}

type Answer = (oneshot::Sender<Result<Staged, Status>>, Result<Staged, Status>);

impl Writer {
    fn next_batch(&mut self) -> Option<Vec<Job>> {
        let mut batch = vec![self.jobs.blocking_recv()?];
        while batch.len() < BATCH_REQUESTS {
            match self.jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        Some(batch)
    }

    fn run(&mut self, shared: &Shared, batch: Vec<Job>) {
        let (mut answers, records) = stage(&mut shared.lock(), batch);
        let mut storages = Vec::new();
        if !records.is_empty() {
            // Reads go on while the disk works.
            match self.disk.commit(&records, &self.dropped) {
                Ok(()) => {
                    let published = shared.lock().publish();
                    self.dropped = published.dropped;
                    storages = published.storages;
                }
                Err(error) => {
                    tracing::error!(%error, "writes are refused");
                    shared.lock().discard();
                    for (_, result) in &mut answers {
                        *result = Err(Status::internal(&error));
                    }
                }
            }
        }
        // Where the runtime has ended, nobody waits for an answer.
        let _ = self.outcomes.blocking_send(Outcome { answers, storages });
    }
}

fn stage(store: &mut Store, batch: Vec<Job>) -> (Vec<Answer>, Vec<Record>) {
    let mut records = Vec::new();
    let mut answers = Vec::with_capacity(batch.len());
    for job in batch {
        let attempt = job.options.attempt;
        let mut replayed = attempt.as_ref().map(Attempt::random);
        let mut context = Context {
            now: attempt.as_ref().map_or_else(now, |attempt| attempt.now),
            random: match &mut replayed {
                Some(replayed) => replayed,
                None => &mut SystemRandom,
            },
            subject: job.options.user.as_ref().map(User::subject),
            manager: &job.options.manager,
            create_refusal: job.options.create_refusal,
            dry_run: job.options.dry_run,
            validation: job.options.validation,
            admission: job.options.admission,
        };
        let staged = match attempt {
            Some(attempt) => store.stage_converted(&job.request, &mut context, attempt.conversions),
            None => store.stage(&job.request, &mut context),
        };
        if let Ok(staged) = &staged {
            records.extend(staged.records.iter().cloned());
        }
        answers.push((job.answer, staged));
    }
    (answers, records)
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_microseconds(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The system's random source.
pub(crate) struct SystemRandom;

impl Random for SystemRandom {
    fn next_u64(&mut self) -> u64 {
        // The call fails only on kernels older than we run on; the hasher's keys are random too.
        getrandom::u64().unwrap_or_else(|_| {
            use std::hash::{BuildHasher as _, Hasher as _};
            std::hash::RandomState::new().build_hasher().finish()
        })
    }
}
