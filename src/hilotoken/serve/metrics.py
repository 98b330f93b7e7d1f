"""What a monitor reads: counters and gauges in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .jobs import Job, JobQueue
from .task import Picture

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)


class Metrics:
    """The figures of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.jobs = Counter("hilo_edits", "Edits that ended, by outcome", ["outcome"], registry=own)
        self.seconds = Histogram("hilo_edit_seconds", "Run time", buckets=SECONDS, registry=own)
        self.tokens_run = Counter("hilo_tokens_run", "Image tokens that ran", registry=own)
        self.tokens_full = Counter("hilo_tokens_full", "Image tokens of whole grids", registry=own)
        self.waiting = Gauge("hilo_queue_waiting", "Edits that wait", registry=own)
        self.running = Gauge("hilo_queue_running", "Edits that run", registry=own)
        self.restarts = Gauge("hilo_worker_restarts", "Workers started anew", registry=own)

    def count(self, job: Job) -> None:
        """Count a job that ended."""
        self.jobs.labels(job.state).inc()
        self.seconds.observe(job.seconds)
        for event in job.events:
            if isinstance(event, Picture):
                self.tokens_run.inc(event.figures["tokens_run"])
                self.tokens_full.inc(event.figures["tokens_full"])

    def text(self, jobs: JobQueue) -> bytes:
        """All figures as they are now."""
        self.waiting.set(jobs.waiting)
        self.running.set(jobs.running)
        self.restarts.set(jobs.restarts)
        return generate_latest(self.registry)
