"""A Hydra application that stands in for `herd pretrain`: its loss is a known surface of model size and tokens.

Run as a script: ``python sweep_app.py CONFIG_FOLDER [hydra arguments]``.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import hydra


def job(config: Any) -> dict[str, Any]:
    """Loss of a synthetic run; misbehaves where ``fail`` says so."""
    folder = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
    log = Path(config.log)
    with log.open("a") as file:  # one line per run, in the order in which they started
        file.write(f"{config.curriculum.tokens} {folder.name}\n")
    if config.model.dim == config.fail_dim:
        match config.fail:
            case "raise":
                raise RuntimeError("the machine is on fire\nwith details")
            case "exit":
                sys.exit(3)
            case "kill":
                os._exit(9)
            case "sleep":
                time.sleep(60)
            case "not_finite":
                return {"loss": float("nan")}
            case "metric":
                return {"perplexity": 3.0}
            case "tokens":
                return {"loss": 3.0, "tokens": 7}
    n, d = 100.0 * config.model.dim**2, float(config.curriculum.tokens)
    return {"loss": 1.9 + 60 / n**0.35 + 180 / d**0.33}


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    sys.argv = ["sweep_app.py", *arguments]
    from herd.config.errors import UserError

    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=folder, config_name="app")(job)()
    except UserError as error:
        print(f"herd: {error}", file=sys.stderr)
        raise SystemExit(2) from None
