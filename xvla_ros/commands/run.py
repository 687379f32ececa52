"""``xvla run``: the launch file's job where there is no launch_ros."""

from __future__ import annotations

import sys
from pathlib import Path

from xvla_ros.evaluation.graph import (
    SetupError,
    choose_profiles,
    policy_command,
    settings_in_simulation,
    sim_command,
)
from xvla_ros.evaluation.processes import ChildError, Interrupted, Supervisor


def run(
    robot: str = "so101_bimanual",
    checkpoint: str | None = None,
    *,
    sim: bool = False,
    namespace: str = "",
    device: str = "cpu",
    autostart: bool = True,
    instruction: str | None = None,
    seed: int = 0,
    output: Path | str = "xvla_out/run",
    robots: str = "",
    dtype: str = "",
    real_time: bool = False,
    use_sim_time: bool = False,
) -> int:
    """Bring up the policy node, and with ``sim`` what simulates its arms, and follow them until Ctrl-C.

    ``robots`` are several, by name or file with commas between them, in the place of ``robot``: one node drives all.
    What is simulated waits for the policy, unless ``real_time`` says no. ``use_sim_time`` takes the time from the
    ``/clock`` of a simulator that runs already.

    The nodes join the graph of the surrounding ROS_DOMAIN_ID, as launched ones do. Their logs go to ``output``/logs.

    Returns:
        0 when ended by Ctrl-C or SIGTERM, 1 when a node ended by itself or could not start (said on stderr).
    """
    from xvla_ros.robots import ProfileError, load_robot
    from xvla_ros.ros_env import child_environment

    try:
        profiles = choose_profiles(robots) if robots else [load_robot(robot)]
        simulated = profiles if sim else []
        settings = {
            name: value
            for profile in simulated
            for name, value in settings_in_simulation(profile, checkpoint, simulated).items()
        }
        policy = policy_command(
            *profiles,
            checkpoint=checkpoint,
            instruction=instruction,
            device=device,
            dtype=dtype,
            sim_time=sim or use_sim_time,
            paced=sim and not real_time,
            autostart=autostart,
            namespace=namespace,
            settings=settings,
        )
        with Supervisor(Path(output) / "logs", child_environment()) as supervisor:
            if sim:
                supervisor.start("sim", sim_command(*profiles, seed=seed, namespace=namespace))
            supervisor.start("policy", policy)
            print(f"running {', '.join(profile.name for profile in profiles)}; Ctrl-C ends it", flush=True)
            supervisor.wait_for(lambda: False, None, "the end")
    except Interrupted:
        print("stopped", flush=True)
        return 0
    except (ChildError, ProfileError, SetupError, OSError) as error:
        print(f"xvla run: {error}", file=sys.stderr)
        return 1
    return 0
