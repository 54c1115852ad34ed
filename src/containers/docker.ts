// Docker, by its API. It keeps the checkpoints of a container with the container, and starts one only from its own: so for a clone
// the checkpoint is copied into the new container's directory (docker start --checkpoint-dir is refused by every version).
// Checkpoints are an experimental feature of the daemon.

import { cpSync, existsSync, mkdirSync, readdirSync, statSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type Dockerode from "dockerode";
import { RepriseError } from "../errors.ts";
import { nextName, type ContainerEngine } from "./container-engine.ts";

/** Connects to the daemon of $DOCKER_HOST, or of this machine. */
export async function connectDocker(): Promise<ContainerEngine> {
  const { default: Docker } = await import("dockerode");
  return new DockerEngine(new Docker());
}

/** Calls of dockerode that its types lack. */
interface WithCheckpoints {
  createCheckpoint(options: {
    readonly checkpointId: string;
    readonly exit: boolean;
  }): Promise<unknown>;
  /** An empty list comes as text: the daemon answers `null`, which dockerode takes for no JSON. */
  listCheckpoint(): Promise<readonly { readonly Name: string }[] | Uint8Array>;
  /** The daemon refuses a start with a body, which is where dockerode puts options otherwise. */
  start(options: {
    readonly _query: { readonly checkpoint: string };
    readonly _body: Record<string, never>;
  }): Promise<unknown>;
}

class DockerEngine implements ContainerEngine {
  readonly #docker: Dockerode;

  constructor(docker: Dockerode) {
    this.#docker = docker;
  }

  async checkpoint(
    container: string,
    options: { readonly leaveRunning: boolean; readonly keepFiles?: boolean },
  ): Promise<string> {
    const checkpointId = nextName(await this.checkpoints(container));
    const source = this.#docker.getContainer(container);
    const { Id, State } = await this.#ask(`look at the container ${container}`, () =>
      source.inspect(),
    );
    if (!State.Running) {
      throw new RepriseError(
        "CONTAINER_ENGINE",
        `cannot checkpoint the container ${container}: it is not running (${State.Status})`,
        { hint: `Start it first: docker start ${container}` },
      );
    }
    if (!options.leaveRunning) {
      await this.#withoutRestarts(container, () =>
        this.#createCheckpoint(container, checkpointId, options),
      );
      return checkpointId;
    }
    if (options.keepFiles !== true) {
      await this.#createCheckpoint(container, checkpointId, options);
      return checkpointId;
    }
    // What runs on goes on writing: its files must be of the same moment as its memory. A checkpoint leaves it paused.
    if (!State.Paused) await this.#ask(`pause the container ${container}`, () => source.pause());
    try {
      await this.#createCheckpoint(container, checkpointId, options);
      if (await this.#hasChanges(source)) await this.#commit(source, filesImage(Id, checkpointId));
    } finally {
      if (!State.Paused)
        await this.#ask(`let the container ${container} go on`, () => source.unpause());
    }
    return checkpointId;
  }

  /**
   * To the daemon a checkpoint that ends a container is an end like any other: a restart policy would start it anew at once. It is put back
   * when the container has ended; the daemon looks at it only then.
   */
  async #withoutRestarts(container: string, end: () => Promise<void>): Promise<void> {
    const source = this.#docker.getContainer(container);
    const { HostConfig } = await this.#ask(`look at the container ${container}`, () =>
      source.inspect(),
    );
    const policy = HostConfig.RestartPolicy;
    if (policy === undefined || policy.Name === "" || policy.Name === "no") return end();
    const set = (RestartPolicy: Dockerode.HostRestartPolicy): Promise<unknown> =>
      this.#ask(`set the restart policy of ${container}`, () => source.update({ RestartPolicy }));
    await set({ Name: "no" });
    try {
      await end();
      await this.#ask(`wait for the end of ${container}`, () => source.wait());
    } finally {
      await set(policy);
    }
  }

  async #createCheckpoint(
    container: string,
    checkpointId: string,
    options: { readonly leaveRunning: boolean },
  ): Promise<void> {
    await this.#ask(`checkpoint the container ${container}`, () =>
      this.#withCheckpoints(container).createCheckpoint({
        checkpointId,
        exit: !options.leaveRunning,
      }),
    );
  }

  async isThere(container: string): Promise<boolean> {
    // Others are no names: who asks for one hears that from the daemon.
    if (!/^[\w.-]+$/.test(container)) return false;
    try {
      await this.#docker.getContainer(container).inspect();
      return true;
    } catch (error) {
      if ((error as { readonly statusCode?: number }).statusCode === 404) return false;
      return this.#ask(`look for a container ${container}`, () => Promise.reject(error as Error));
    }
  }

  async visitors(container: string): Promise<number> {
    const { ExecIDs } = await this.#ask(`look at the container ${container}`, () =>
      this.#docker.getContainer(container).inspect(),
    );
    const running = await Promise.all((ExecIDs ?? []).map((id) => this.#runs(id)));
    return running.filter(Boolean).length;
  }

  /** One that has ended is forgotten after a while. */
  async #runs(exec: string): Promise<boolean> {
    try {
      return (await this.#docker.getExec(exec).inspect()).Running;
    } catch {
      return false;
    }
  }

  /** The daemon's own list comes in no order: that of the directories' times is taken. */
  async checkpoints(container: string): Promise<readonly string[]> {
    const listed = await this.#ask(`list the checkpoints of ${container}`, () =>
      this.#withCheckpoints(container).listCheckpoint(),
    );
    const names = listed instanceof Uint8Array ? [] : listed.map(({ Name }) => Name);
    const directory = await this.#checkpointsDirectory(container);
    const time = (name: string): number =>
      statSync(join(directory, name), { throwIfNoEntry: false })?.mtimeMs ?? 0;
    return names.toSorted((a, b) => time(a) - time(b));
  }

  async images(container: string, checkpoint: string): Promise<string | undefined> {
    return join(await this.#checkpointsDirectory(container), checkpoint);
  }

  async restore(container: string, checkpoint: string): Promise<void> {
    const { State } = await this.#ask(`look at the container ${container}`, () =>
      this.#docker.getContainer(container).inspect(),
    );
    // The daemon would say that it has started it, and do nothing.
    if (State.Running) {
      throw new RepriseError(
        "CONTAINER_ENGINE",
        `cannot restore the container ${container}: it is running`,
        { hint: `Stop it first: docker stop ${container}` },
      );
    }
    await this.#start(container, checkpoint);
  }

  async clone(
    container: string,
    { checkpoint, newName }: { readonly checkpoint: string; readonly newName: string },
  ): Promise<readonly string[]> {
    const source = this.#docker.getContainer(container);
    const inspected = await this.#ask(`look at the container ${container}`, () => source.inspect());
    const notes: string[] = [];
    const image = await this.#imageOf(source, { inspected, checkpoint, notes });
    const created = await this.#ask(`create the container ${newName}`, () =>
      this.#docker.createContainer({
        ...inspected.Config,
        name: newName,
        Image: image,
        HostConfig: withFreePorts(inspected.HostConfig, notes),
        NetworkingConfig: { EndpointsConfig: endpoints(inspected.NetworkSettings.Networks) },
      }),
    );
    try {
      const from = join(await this.#checkpointsDirectory(container), checkpoint);
      const directory = await this.#checkpointsDirectory(created.id);
      mkdirSync(directory, { recursive: true, mode: 0o700 });
      cpSync(from, join(directory, checkpoint), { recursive: true, errorOnExist: true });
      await this.#start(created.id, checkpoint);
    } catch (error) {
      await created.remove({ force: true });
      throw error;
    }
    return notes;
  }

  /** The image of a clone: the container's own, with the files that it had changed at the checkpoint, or else has until now. */
  async #imageOf(
    source: Dockerode.Container,
    {
      inspected,
      checkpoint,
      notes,
    }: {
      readonly inspected: Dockerode.ContainerInspectInfo;
      readonly checkpoint: string;
      readonly notes: string[];
    },
  ): Promise<string> {
    const name = filesImage(inspected.Id, checkpoint);
    const kept = await this.#ask("list the images", () =>
      this.#docker.listImages({ filters: { reference: [name] } }),
    );
    if (kept.length === 0 && !(await this.#hasChanges(source))) return inspected.Image;
    const image = kept.length > 0 ? name : await this.#commit(source);
    notes.push(`its changed files are in the image ${image.replace(/^(sha256:.{12}).*/, "$1")}`);
    return image;
  }

  async #hasChanges(source: Dockerode.Container): Promise<boolean> {
    const changes = (await this.#ask("list the files that the container has changed", () =>
      source.changes(),
    )) as readonly unknown[] | null;
    return changes !== null && changes.length > 0;
  }

  /** Makes an image of a container's files; its id. */
  async #commit(source: Dockerode.Container, name?: string): Promise<string> {
    const [repo, tag] = name?.split(":") ?? [];
    const named = repo === undefined ? {} : { repo, tag };
    const committed = (await this.#ask("commit the files that the container has changed", () =>
      source.commit({ ...named, pause: true, comment: "files of a container for a clone" }),
    )) as { readonly Id: string };
    return committed.Id;
  }

  async #start(container: string, checkpoint: string): Promise<void> {
    const start = (): Promise<unknown> =>
      this.#ask(`start ${container} from the checkpoint ${checkpoint}`, () =>
        this.#withCheckpoints(container).start({ _query: { checkpoint }, _body: {} }),
      );
    try {
      await start();
    } catch (error) {
      // The daemon hands the checkpoint to containerd as an archive named by its content, and finds that the one that it made of
      // the same files at the checkpoint is still there. Times in seconds are a part of the content.
      if (!(error instanceof RepriseError) || !/already exists/.test(error.message)) throw error;
      await sleep(1000);
      touch(join(await this.#checkpointsDirectory(container), checkpoint));
      await start();
    }
  }

  async #checkpointsDirectory(container: string): Promise<string> {
    const inspected = await this.#ask(`look at the container ${container}`, () =>
      this.#docker.getContainer(container).inspect(),
    );
    const info = (await this.#ask("ask the daemon about itself", () => this.#docker.info())) as {
      readonly DockerRootDir: string;
    };
    const directory = join(info.DockerRootDir, "containers", inspected.Id);
    if (!existsSync(directory)) {
      throw new RepriseError(
        "CONTAINER_ENGINE",
        `cannot reach ${directory}: it is not on this machine`,
        {
          hint: "Clones need the daemon's files: run reprise where the daemon runs, as root.",
        },
      );
    }
    return join(directory, "checkpoints");
  }

  #withCheckpoints(container: string): WithCheckpoints {
    return this.#docker.getContainer(container) as unknown as WithCheckpoints;
  }

  async #ask<T>(what: string, question: () => Promise<T>): Promise<T> {
    try {
      return await question();
    } catch (error) {
      if (error instanceof RepriseError) throw error;
      const { statusCode, json } = error as {
        readonly statusCode?: number;
        readonly json?: { readonly message?: string };
      };
      // The daemon's own words, without those about HTTP.
      const message = json?.message ?? (error as Error).message;
      throw new RepriseError("CONTAINER_ENGINE", `cannot ${what}: docker: ${firstLine(message)}`, {
        hint: adviceFor(message, statusCode),
        cause: error,
      });
    }
  }
}

/** Name of the image with the files of a container at one of its checkpoints. */
function filesImage(container: string, checkpoint: string): string {
  return `reprise-files:${container.slice(0, 12)}-${checkpoint.replace(/[^\w.-]/g, "_")}`;
}

function adviceFor(message: string, status: number | undefined): string {
  if (/experimental/i.test(message))
    return 'Checkpoints are an experimental feature: put {"experimental": true} into /etc/docker/daemon.json and restart the daemon.';
  if (/ENOENT|ECONNREFUSED/.test(message))
    return "Is the daemon running? DOCKER_HOST names its socket.";
  if (status === 404) return "docker ps -a lists the containers.";
  return "The daemon's log, and the dump.log or restore.log that it names, tell more. `reprise check` tells what Docker needs.";
}

function firstLine(text: string): string {
  return (text.split("\n")[0] ?? "").trimEnd();
}

/** Ports of the host can be published once: the clone gets others. */
function withFreePorts(config: Dockerode.HostConfig, notes: string[]): Dockerode.HostConfig {
  const bindings = (config.PortBindings ?? {}) as Record<
    string,
    { HostIp?: string; HostPort?: string }[] | null
  >;
  const fixed = Object.values(bindings).some((list) =>
    list?.some(({ HostPort }) => HostPort !== "" && HostPort !== undefined),
  );
  if (!fixed) return config;
  notes.push(
    "its published ports are the first container's: it got others (docker port tells which)",
  );
  const free = Object.entries(bindings).map(([port, list]) => [
    port,
    (list ?? []).map(({ HostIp }) => ({
      ...(HostIp === undefined ? {} : { HostIp }),
      HostPort: "",
    })),
  ]);
  return { ...config, PortBindings: Object.fromEntries(free) as unknown };
}

/** The same networks; addresses are the network's to give. */
function endpoints(
  networks: Dockerode.ContainerInspectInfo["NetworkSettings"]["Networks"],
): Record<string, Dockerode.EndpointSettings> {
  return Object.fromEntries(Object.keys(networks).map((name) => [name, {}]));
}

function touch(directory: string): void {
  const now = new Date();
  for (const name of readdirSync(directory)) utimesSync(join(directory, name), now, now);
  utimesSync(directory, now, now);
}
