"""Which file holds which command."""

import typer

from cdrl.cli import (
    bench,
    chain,
    compare,
    compose,
    config,
    curve,
    data,
    demo,
    density,
    doctor,
    evaluate,
    inpaint,
    jobs,
    likelihood,
    ood,
    registry,
    replay,
    report,
    sample,
    schedule,
    serve,
    submit,
    track,
    train,
    tune,
)

__all__ = ["attach"]


def attach(app: typer.Typer) -> None:
    """Hang every command group on the root."""
    app.add_typer(config.app, name="config")
    app.add_typer(schedule.app, name="schedule")
    app.add_typer(data.app, name="data")
    app.command()(train.train)
    app.command()(tune.tune)
    app.command()(evaluate.evaluate)
    app.command()(report.report)
    app.command()(compare.compare)
    app.command()(curve.curve)
    app.add_typer(registry.app, name="registry")
    app.command()(serve.serve)
    app.add_typer(track.app, name="track")
    app.command()(sample.sample)
    app.command()(compose.compose)
    app.command()(inpaint.inpaint)
    app.command()(demo.demo)
    app.command()(ood.ood)
    app.command()(density.density)
    app.command()(likelihood.likelihood)
    app.command()(chain.chain)
    app.command()(replay.replay)
    app.command()(bench.bench)
    app.command()(submit.submit)
    app.add_typer(jobs.app, name="jobs")
    app.command()(doctor.doctor)
