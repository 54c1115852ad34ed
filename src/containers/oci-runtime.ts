// runc and crun, by their commands. A container is an id and a bundle (a directory with config.json and, mostly, the root file
// system); when it is checkpointed and ends the runtime forgets it, so its bundle is written down with the checkpoint. A clone gets a
// bundle of its own: a copy, since two containers that write into one root file system are in each other's way.

import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { RepriseError } from "../errors.ts";
import { homeDirectory } from "../store/home.ts";
import { runCommand, succeeds } from "./command.ts";
import { runKeepingOutput } from "./keep-output.ts";
import { nextName, type ContainerEngine, type EngineName } from "./container-engine.ts";

/** The engine of a runtime's command. */
export function ociRuntime(runtime: EngineName): ContainerEngine {
  return {
    checkpoint: (id, options) => Promise.resolve(checkpoint(runtime, id, options)),
    isThere: (id) => Promise.resolve(succeeds([runtime, "state", id])),
    // It keeps no list of them; the log beside the images tells.
    visitors: () => Promise.resolve(undefined),
    checkpoints: (id) => Promise.resolve(list(runtime, id)),
    images: (id, name) => Promise.resolve(imagesOf(runtime, id, name)),
    restore(id, name) {
      start(runtime, { id, images: imagesOf(runtime, id, name), bundle: bundleOf(runtime, id) });
      return Promise.resolve();
    },
    clone(id, { checkpoint: name, newName }) {
      const kept = filesOf(runtime, id, name);
      const from = existsSync(kept) ? kept : bundleOf(runtime, id);
      const bundle = join(directoryOf(runtime, newName), "bundle");
      copyBundle({ from, to: bundle, id: newName });
      try {
        start(runtime, { id: newName, images: imagesOf(runtime, id, name), bundle });
      } catch (error) {
        rmSync(bundle, { recursive: true, force: true });
        throw error;
      }
      writeBundle(runtime, newName, bundle);
      return Promise.resolve([
        `its bundle is ${bundle}`,
        `its output goes to ${join(directoryOf(runtime, newName), "output.log")}`,
      ]);
    },
  };
}

function checkpoint(
  runtime: EngineName,
  id: string,
  { leaveRunning, keepFiles }: { readonly leaveRunning: boolean; readonly keepFiles?: boolean },
): string {
  const name = nextName(list(runtime, id));
  const images = imagesOf(runtime, id, name);
  const { bundle, status } = JSON.parse(runCommand([runtime, "state", id])) as {
    readonly bundle: string;
    readonly status: string;
  };
  if (status !== "running" && status !== "paused") {
    throw new RepriseError(
      "CONTAINER_ENGINE",
      `cannot checkpoint the container ${id}: it is not running (${status})`,
      { hint: `Start it first: ${runtime} start ${id}` },
    );
  }
  mkdirSync(images, { recursive: true, mode: 0o700 });
  // What runs on goes on writing: its files must be of the same moment as its memory.
  const holds = keepFiles === true && leaveRunning && status !== "paused";
  if (holds) runCommand([runtime, "pause", id]);
  try {
    const running = leaveRunning ? ["--leave-running"] : [];
    runCommand([
      runtime,
      "checkpoint",
      "--image-path",
      images,
      "--work-path",
      images,
      ...running,
      id,
    ]);
    if (keepFiles === true) copyBundle({ from: bundle, to: filesOf(runtime, id, name), id });
  } catch (error) {
    for (const made of [images, filesOf(runtime, id, name)])
      rmSync(made, { recursive: true, force: true });
    throw error;
  } finally {
    if (holds) runCommand([runtime, "resume", id]);
  }
  writeBundle(runtime, id, bundle);
  return name;
}

function start(
  runtime: EngineName,
  of: { readonly id: string; readonly images: string; readonly bundle: string },
): void {
  const { id, images, bundle } = of;
  const directory = directoryOf(runtime, id);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const [output, log] = [join(directory, "output.log"), join(directory, "runtime.log")];
  rmSync(log, { force: true });
  const words = [
    "restore",
    "--detach",
    "--image-path",
    images,
    "--work-path",
    images,
    "--bundle",
    bundle,
    id,
  ];
  runKeepingOutput([runtime, "--log", log, ...words], { output, log });
}

/** Copies a bundle; a root file system that is elsewhere comes into it. */
function copyBundle({ from, to: bundle, id }: { from: string; to: string; id: string }): void {
  if (existsSync(bundle)) {
    throw new RepriseError("NAME_TAKEN", `there is a bundle for ${id} already: ${bundle}`, {
      hint: "Choose another name, or remove the directory.",
    });
  }
  const config = JSON.parse(readFileSync(join(from, "config.json"), "utf8")) as OciConfig;
  mkdirSync(bundle, { recursive: true, mode: 0o700 });
  // node's cpSync knows neither devices nor owners.
  runCommand([
    "cp",
    "-a",
    "--reflink=auto",
    "--",
    resolve(from, config.root.path),
    join(bundle, "rootfs"),
  ]);
  for (const name of readdirSync(from)) {
    if (name === "config.json" || resolve(from, name) === resolve(from, config.root.path)) continue;
    cpSync(join(from, name), join(bundle, name), { recursive: true });
  }
  const { cgroupsPath, ...linux } = config.linux ?? {};
  const own = cgroupsPath === undefined ? {} : { cgroupsPath: renamed(cgroupsPath, id) };
  writeFileSync(
    join(bundle, "config.json"),
    JSON.stringify({
      ...config,
      root: { ...config.root, path: "rootfs" },
      linux: { ...linux, ...own },
    }),
    { mode: 0o600 },
  );
}

interface OciConfig {
  readonly root: { readonly path: string };
  readonly linux?: { readonly cgroupsPath?: string };
}

/** `/a/b/old` and `slice:prefix:old` end in the container's name. */
function renamed(cgroupsPath: string, id: string): string {
  return cgroupsPath.replace(/[^/:]*$/, id);
}

function list(runtime: EngineName, id: string): string[] {
  const directory = join(directoryOf(runtime, id), "checkpoints");
  return existsSync(directory)
    ? readdirSync(directory).toSorted((a, b) => a.localeCompare(b, "en", { numeric: true }))
    : [];
}

function imagesOf(runtime: EngineName, id: string, name: string): string {
  return join(directoryOf(runtime, id), "checkpoints", name);
}

/** The bundle as it was at a checkpoint, where it was kept. */
function filesOf(runtime: EngineName, id: string, name: string): string {
  return join(directoryOf(runtime, id), "files", name);
}

function directoryOf(runtime: EngineName, id: string): string {
  return join(homeDirectory(), "containers", runtime, id.replaceAll("/", "_"));
}

function writeBundle(runtime: EngineName, id: string, bundle: string): void {
  writeFileSync(join(directoryOf(runtime, id), "bundle.json"), JSON.stringify({ bundle }), {
    mode: 0o600,
  });
}

function bundleOf(runtime: EngineName, id: string): string {
  const file = join(directoryOf(runtime, id), "bundle.json");
  if (!existsSync(file)) {
    throw new RepriseError("NO_SUCH_NAME", `the container ${id} of ${runtime} has no checkpoint`, {
      hint: `Make one: reprise checkpoint ${runtime}:${id}`,
    });
  }
  return (JSON.parse(readFileSync(file, "utf8")) as { readonly bundle: string }).bundle;
}
