// `criu restore`: options to the engine's restore; pidfile, statistics, and what happens afterwards: leave
// (-d), wait for the root task, or become another program (--exec-cmd) as the root task's parent.

import { closeSync, openSync, writeSync } from "node:fs";
import type { EngineHooks, RestoreStats } from "../engine/progress.ts";
import { restore, type RestoreOptions, type RestoreResult } from "../engine/restore.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import { findPlacement } from "../objects/cgroups/placement.ts";
import { errnoOf } from "../proc/procfs.ts";
import { readStatIfAlive } from "../proc/stat.ts";
import { frontPid, isStandIn } from "../sys/front.ts";
import { cgroupRestoreOptions } from "./cgroups.ts";
import { externalUnixSockets, type CriuOptions } from "./options.ts";
import { namespaceRestoreOptions } from "./namespace-options.ts";
import type { Directories } from "./paths.ts";
import { checkCpuIfAsked, cpuCapabilities } from "./cpuinfo.ts";
import { printOut } from "./output.ts";
import { scriptRunner, type Client } from "./scripts.ts";
import { pageCount } from "./stats-text.ts";

/** Runs the action. Returns the exit code. */
export async function restoreAction(
  options: CriuOptions,
  directories: Directories,
): Promise<number> {
  const command = execCommand(options);
  if (options.values.tree !== undefined) log.warn("-t has no meaning for restore");
  if (options.values["network-lock"] !== undefined) {
    log.warn("--network-lock will be ignored in restore command");
  }
  if (options.flags.has("restore-sibling") && !options.flags.has("restore-detached")) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      "--restore-sibling only makes sense with --restore-detached",
      { hint: "A sibling is not ours to wait for." },
    );
  }
  const logFile = options.values["log-file"];
  if (options.flags.has("log-pid") && logFile !== undefined) {
    const { logPerPid } = await import("./pid-logs.ts");
    logPerPid(logFile);
  }
  const result = await restoreTree(options, directories);
  if (result.plan !== undefined) return 0;
  if (command.length > 0) {
    const { becomeProgram } = await import("./exec.ts");
    becomeProgram(command);
  }
  if (!options.flags.has("restore-detached")) await result.wait();
  return 0;
}

/** The restore itself, for the command line and for RPC clients. */
export async function restoreTree(
  options: CriuOptions,
  directories: Directories,
  client?: Client,
): Promise<RestoreResult> {
  const pidfile = pidfileWriter(options.values.pidfile);
  const hooks = restoreHooks(options, directories, { pidfile, client });
  const { streamRestore } = options.flags.has("stream") ? await import("./stream.ts") : {};
  using streamed = streamRestore?.(options, directories, hooks);
  const imagesDir = streamed?.imagesDir ?? directories.imagesDir;
  checkCpuIfAsked(options, { ...directories, imagesDir });
  const placement = findPlacement(callerPid());
  const dryRun = options.flags.has("explain");
  if (!dryRun) placement?.leave();
  const result = await restore({
    ...engineOptions(options),
    imagesDir,
    workDir: directories.workDir,
    placement,
    hooks,
    dryRun,
  });
  if (result.plan !== undefined) {
    printOut(`${result.plan.join("\n")}\n`);
    return result;
  }
  pidfile.write(result.pid);
  if (options.flags.has("display-stats")) printOut(restoreStatsText(result.stats));
  log.info("Restore finished successfully. Tasks resumed.");
  return result;
}

/** Who started this command. */
function callerPid(): number {
  return isStandIn() ? (readStatIfAlive(frontPid())?.ppid ?? process.ppid) : process.ppid;
}

/** The engine's options that options of CRIU stand for. */
function engineOptions(options: CriuOptions): Omit<RestoreOptions, "imagesDir"> {
  const { flags, values } = options;
  return {
    shellJob: flags.has("shell-job"),
    extUnixSk: externalUnixSockets(options) !== false,
    tcp: { established: flags.has("tcp-established"), close: flags.has("tcp-close") },
    cgroups: cgroupRestoreOptions(options),
    ...namespaceRestoreOptions(options),
    sibling: flags.has("restore-sibling"),
    orphanPtsMaster: flags.has("orphan-pts-master"),
    leaveStopped: options.leave === "stopped",
    fileLocks: flags.has("file-locks"),
    removeLinks: true,
    ...(values["lsm-profile"] === undefined ? {} : { lsmProfile: values["lsm-profile"] }),
    ...(flags.has("lazy-pages") ? { lazyPages: true } : {}),
    ...(flags.has("auto-dedup") ? { autoDedup: true } : {}),
    skipRwxCheck: flags.has("skip-file-rwx-check"),
    processor: cpuCapabilities(options).compared,
    fileValidation: values["file-validation"] === "filesize" ? "filesize" : "buildid",
  };
}

/** The command behind `--` that --exec-cmd asks for, or nothing. */
function execCommand(options: CriuOptions): readonly string[] {
  if (!options.flags.has("exec-cmd")) return [];
  const command = options.words.slice(1);
  if (options.flags.has("restore-detached")) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      "--restore-detached and --exec-cmd cannot be used together",
      {
        hint: "The command becomes the parent of the restored process, which a detached one has not.",
      },
    );
  }
  return command;
}

interface PidfileWriter {
  write(pid: number): void;
}

/** Writes once; the file must not exist, so that a pid that is in use is never overwritten. */
function pidfileWriter(path: string | undefined): PidfileWriter {
  let open = path !== undefined;
  return {
    write(pid) {
      if (!open || path === undefined) return;
      open = false;
      try {
        const fd = openSync(path, "wx", 0o600);
        writeSync(fd, String(pid));
        closeSync(fd);
      } catch (error) {
        const errno = errnoOf(error) ?? "unknown error";
        throw new RepriseError("BAD_ARGUMENT", `cannot write pidfile ${path}: openat: ${errno}`, {
          hint: "The pidfile must not exist, and its directory must.",
          cause: error,
        });
      }
    },
  };
}

/** The pidfile is written before the tasks run, so that a failure leaves none of them behind. */
function restoreHooks(
  options: CriuOptions,
  directories: Directories,
  { pidfile, client }: { readonly pidfile: PidfileWriter; readonly client: Client | undefined },
): EngineHooks {
  const runner = scriptRunner({
    scripts: options.lists["action-script"] ?? [],
    imagesDirFd: directories.imagesDirFd,
    client,
  });
  return {
    ...runner,
    script(action, initPid) {
      if (action === "post-restore" && initPid !== undefined) pidfile.write(initPid);
      runner.script?.(action, initPid);
    },
  };
}

function restoreStatsText(stats: RestoreStats): string {
  return [
    "Displaying restore stats:",
    `Pages compared: ${pageCount(stats.pages_compared)}`,
    `Pages skipped COW: ${pageCount(stats.pages_skipped_cow)}`,
    `Pages restored: ${pageCount(stats.pages_restored)}`,
    `Restore time: ${stats.restore_time} us`,
    `Forking time: ${stats.forking_time} us`,
    "",
  ].join("\n");
}
