// The announced steps of a dump or restore. First the RPC client is told, if it wants to be, and must agree; then action
// scripts run: programs by path, with the step, the images directory and the root task's pid in their environment. What a
// refusal or a failing script means differs by step.

import type { EngineHooks, ScriptAction } from "../engine/progress.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import type { CriuOptions } from "./options.ts";
import type { Directories } from "./paths.ts";

/** Steps whose failures are only logged: the tasks run already, or are about to. */
const ONLY_LOGGED: readonly ScriptAction[] = ["pre-resume", "post-resume", "network-unlock"];

export interface ScriptRunner extends EngineHooks {
  /** Exit code of the post-dump script that failed, which becomes the exit code of the dump. */
  postDumpStatus(): number | undefined;
}

/** Who is told of the steps. */
export interface ScriptOptions {
  readonly scripts: readonly string[];
  readonly imagesDirFd: number;
  /** The RPC client: it is told before the scripts. */
  readonly client?: Client | undefined;
}

/** An RPC client that is told of the steps. Each call throws when it does not agree. */
export interface Client extends Required<EngineHooks> {}

/** Hooks that tell the client, and run every script, at every step, in the order given. */
export function scriptRunner({ scripts, imagesDirFd, client }: ScriptOptions): ScriptRunner {
  let postDump: number | undefined;
  const runScripts = (action: ScriptAction, initPid: number | undefined): void => {
    for (const path of scripts) {
      log.info(`Running ${action} script ${path}`);
      const status = run({ path, action, imagesDirFd, initPid });
      if (status === 0) continue;
      if (action === "post-dump") postDump = status;
      throw new RepriseError("BAD_ARGUMENT", `script ${path} failed at ${action}: exit ${status}`, {
        hint: `A script given by --action-script must end with 0 for ${action} to go on.`,
      });
    }
  };
  // The engine can do without some waiting when nobody is told.
  if (scripts.length === 0 && client === undefined) return { postDumpStatus: () => undefined };
  return {
    postDumpStatus: () => postDump,
    script(action, initPid) {
      try {
        client?.script(action, initPid);
        runScripts(action, initPid);
      } catch (error) {
        if (!ONLY_LOGGED.includes(action)) throw error;
        log.warn(error instanceof Error ? error.message : String(error));
      }
    },
    beginScript(action, initPid) {
      const end = client?.beginScript(action, initPid);
      return () => {
        end?.();
        runScripts(action, initPid);
      };
    },
    ...(client === undefined
      ? {}
      : {
          queryExternal: () => client.queryExternal(),
          orphanMaster: (fd: number) => client.orphanMaster(fd),
        }),
  };
}

/** What a server does when it can be connected to, before it tells --status-fd. */
export function readyScripts(options: CriuOptions, { imagesDirFd }: Directories): () => void {
  const scripts = options.lists["action-script"] ?? [];
  const runner = scriptRunner({ scripts, imagesDirFd });
  return () => runner.script?.("status-ready");
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
