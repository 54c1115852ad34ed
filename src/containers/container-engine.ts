// What `reprise` can do with a container, whoever runs it. Each engine has its file; all work through its API or command, so that
// the engine itself knows of every checkpoint and every clone.

import { RepriseError } from "../errors.ts";

/** Names of engines, as they stand before the colon of a container's reference. */
const ENGINE_NAMES = ["docker", "podman", "runc", "crun"] as const;
export type EngineName = (typeof ENGINE_NAMES)[number];

/** `docker:looper`. */
export interface ContainerReference {
  readonly engine: EngineName;
  readonly container: string;
}

export interface ContainerEngine {
  /**
   * Saves a container, and stops it unless it is left running. With `keepFiles` a clone of it gets the files of the same moment,
   * whatever the container does afterwards (Podman puts them into the archive always).
   *
   * @returns the name of the checkpoint. @throws RepriseError CONTAINER_ENGINE, with the engine's own words.
   */
  checkpoint(
    container: string,
    options: { readonly leaveRunning: boolean; readonly keepFiles?: boolean },
  ): Promise<string>;
  /** Whether there is a container of a name. */
  isThere(container: string): Promise<boolean>;
  /** How many processes `exec` has started that run in a container: no checkpoint has them. Undefined where nobody counts. */
  visitors(container: string): Promise<number | undefined>;
  /** Names of a container's checkpoints, oldest first. */
  checkpoints(container: string): Promise<readonly string[]>;
  /** Directory of a checkpoint's images; undefined where they are in an archive. */
  images(container: string, checkpoint: string): Promise<string | undefined>;
  /** Lets a stopped container go on from a checkpoint. */
  restore(container: string, checkpoint: string): Promise<void>;
  /** Makes a second container that goes on from a checkpoint of the first one. Lines for the user come back. */
  clone(
    container: string,
    options: { readonly checkpoint: string; readonly newName: string },
  ): Promise<readonly string[]>;
}

/** Reads `ENGINE:CONTAINER`; undefined for a plain name, which is a task of reprise's own. */
export function parseReference(text: string): ContainerReference | undefined {
  const colon = text.indexOf(":");
  if (colon < 0) return undefined;
  const engine = ENGINE_NAMES.find((name) => name === text.slice(0, colon));
  const container = text.slice(colon + 1);
  if (engine === undefined || container === "") {
    throw new RepriseError("BAD_ARGUMENT", `${JSON.stringify(text)} names no container`, {
      hint: `Write ENGINE:CONTAINER, with one of ${ENGINE_NAMES.join(", ")}.`,
    });
  }
  return { engine, container };
}

/** The engine of a reference; its file is loaded only now. */
export async function engineOf({ engine }: ContainerReference): Promise<ContainerEngine> {
  switch (engine) {
    case "docker":
      return (await import("./docker.ts")).connectDocker();
    case "podman":
      return (await import("./podman.ts")).podman;
    case "runc":
    case "crun":
      return (await import("./oci-runtime.ts")).ociRuntime(engine);
  }
}

/** The checkpoint to use: the one that was asked for, or the newest. @throws RepriseError NO_SUCH_NAME */
export async function chooseCheckpoint(
  engine: ContainerEngine,
  container: string,
  wanted: string | undefined,
): Promise<string> {
  const all = await engine.checkpoints(container);
  const chosen = wanted ?? all.at(-1);
  if (chosen === undefined || !all.includes(chosen)) {
    throw new RepriseError(
      "NO_SUCH_NAME",
      chosen === undefined
        ? `the container ${container} has no checkpoint`
        : `the container ${container} has no checkpoint ${chosen}`,
      {
        hint:
          all.length === 0
            ? "Make one: reprise checkpoint ENGINE:CONTAINER"
            : `It has: ${all.join(", ")}`,
      },
    );
  }
  return chosen;
}

/** The next free name for a checkpoint: reprise-1, reprise-2, … */
export function nextName(existing: readonly string[]): string {
  const numbers = existing.map((name) => Number(/^reprise-(\d+)$/.exec(name)?.[1] ?? 0));
  return `reprise-${Math.max(0, ...numbers) + 1}`;
}
