// Action scripts: programs that CRIU runs at announced steps of a dump or restore, by path, with the
// step, the images directory and the root task's pid in their environment. What a failing one means
// differs by step.

import type { EngineHooks, ScriptAction } from "../engine/progress.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";

/** Steps whose failing scripts are only logged: the tasks run already, or are about to. */
const ONLY_LOGGED: readonly ScriptAction[] = ["pre-resume", "post-resume", "network-unlock"];

export interface ScriptRunner extends Required<EngineHooks> {
  /** Exit code of the post-dump script that failed, which becomes the exit code of the dump. */
  postDumpStatus(): number | undefined;
}

/** Hooks that run every script at every step, in the order given. */
export function scriptRunner(scripts: readonly string[], imagesDirFd: number): ScriptRunner {
  let postDump: number | undefined;
  return {
    postDumpStatus: () => postDump,
    script(action, initPid) {
      for (const path of scripts) {
        log.info(`Running ${action} script ${path}`);
        const status = run({ path, action, imagesDirFd, initPid });
        if (status === 0) continue;
        const message = `script ${path} failed at ${action}: exit ${status}`;
        if (ONLY_LOGGED.includes(action)) {
          log.warn(message);
          continue;
        }
        if (action === "post-dump") postDump = status;
        throw new RepriseError("BAD_ARGUMENT", message, {
          hint: `A script given by --action-script must end with 0 for ${action} to go on.`,
        });
      }
    },
  };
}

/** Exit status of the script, 128 and more for a signal, 127 when it cannot be started. */
function run(options: {
  path: string;
  action: ScriptAction;
  imagesDirFd: number;
  initPid: number | undefined;
}): number {
  const env: NodeJS.ProcessEnv = {
    ...process.env,
    CRTOOLS_SCRIPT_ACTION: options.action,
    CRTOOLS_IMAGE_DIR: `/proc/${process.pid}/fd/${options.imagesDirFd}`,
  };
  if (options.initPid !== undefined) env["CRTOOLS_INIT_PID"] = String(options.initPid);
  // Loaded when a script is run, and only then: it takes 2 ms.
  const { spawnSync } = process.getBuiltinModule("node:child_process");
  const result = spawnSync(options.path, [], { env, stdio: ["ignore", "inherit", "inherit"] });
  if (result.error !== undefined) {
    log.error(`cannot start script ${options.path}: ${result.error.message}`);
    return 127;
  }
  return result.status ?? 128;
}
