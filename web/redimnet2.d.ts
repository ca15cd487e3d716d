/**
 * A recording: samples at 16 kHz, samples at another rate (in Hz), or a file
 * such as WAV or MP3. Channels of a file are averaged. All but samples at 16 kHz
 * needs a browser.
 */
export type Audio =
  | Float32Array
  | { samples: Float32Array; sampleRate: number }
  | Blob;

/** A cosine above which two voices are one, and where it is from. */
export interface OperatingPoint {
  /** null where none is known. */
  threshold: number | null;
  /** In words; "given" for one that was set. */
  thresholdOrigin: string | null;
}

export interface Verification extends OperatingPoint {
  /** The cosine to the mean of the speaker's embeddings. */
  score: number;
  /** null where no threshold is known. */
  sameSpeaker: boolean | null;
}

export interface Identification extends OperatingPoint {
  /** null if it is none of the enrolled. */
  speaker: string | null;
  /** All enrolled speakers, the best first. */
  candidates: { speaker: string; score: number }[];
}

/** Who is enrolled, to be kept as JSON. */
export interface Enrolments {
  /** Embeddings of another one cannot be compared with these. */
  embeddingSpace: string;
  speakers: { name: string; embeddings: number[][] }[];
}

/** The settings of onnxruntime-web, such as `env.wasm.proxy`. */
export { env } from "onnxruntime-common";

/**
 * Loads a file of `redimnet2 export`, in any form but with --features.
 *
 * @param model Its address or content.
 * @param options With a threshold in place of that of the file.
 */
export function load(
  model: string | URL | ArrayBuffer | Uint8Array,
  options?: { threshold?: number },
): Promise<SpeakerRecognition>;

/**
 * Compares voices. What cannot be used is an Error whose message is one line.
 */
export interface SpeakerRecognition {
  /** What the file says of itself. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The space of its embeddings: those of another cannot be compared. */
  readonly embeddingSpace: string;
  readonly embeddingSize: number;
  /** At 16 kHz; 400. */
  readonly minimumSamples: number;
  /** The only length that a file of --for=fixed takes, or null. */
  readonly fixedSamples: number | null;
  /** That of the file, until another from -1 to 1 is set; null for none. */
  get threshold(): number | null;
  set threshold(value: number);
  readonly thresholdOrigin: string | null;
  /** Who is enrolled. */
  readonly names: string[];

  /**
   * The embedding of a recording. One of more than a minute is embedded in
   * pieces, and these embeddings are averaged.
   */
  embed(audio: Audio): Promise<Float32Array>;
  /** Adds recordings to those of a name, or begins with them. */
  enrol(name: string, ...audio: Audio[]): Promise<void>;
  remove(name: string): void;
  /** Whether a recording is of an enrolled speaker. */
  verify(name: string, audio: Audio): Promise<Verification>;
  /** Which of the enrolled speakers a recording is of. */
  identify(audio: Audio): Promise<Identification>;
  /**
   * Embeds the test input of the file's metadata.
   *
   * @returns The largest difference from the embedding that the file has of it,
   *   relative to the largest value; an Error if it is above 1e-4.
   */
  check(): Promise<number>;
  /** What JSON.stringify takes. */
  toJSON(): Enrolments;
  /** Enrols who was enrolled, by the same model, in place of all others. */
  restore(saved: Enrolments): void;
  /** Gives the memory back. */
  release(): Promise<void>;
}
