// Compares voices with sherpa-onnx; docs/sherpa_onnx.md says how to build it.
//   compare b0.onnx a.wav b.wav   prints the cosine, from -1 to 1
//   compare --check b0.onnx       whether the file computes here what it should
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "sherpa-onnx/c-api/c-api.h"

using Extractor = const SherpaOnnxSpeakerEmbeddingExtractor *;
using Floats = std::vector<float>;
void Require(bool holds, const std::string &file, const std::string &remedy) {
  if (!holds) throw std::runtime_error(file + ": " + remedy);
}

Floats ReadSpeech(const std::string &file) {
  Require(std::ifstream(file).good(), file, "cannot be read; check the path");
  const SherpaOnnxWave *wave = SherpaOnnxReadWave(file.c_str());
  Require(wave, file, "no WAV file; convert it");
  Require(wave->sample_rate == 16000, file, "not at 16 kHz; resample it");
  Floats samples(wave->samples, wave->samples + wave->num_samples);
  SherpaOnnxFreeWave(wave);
  return samples;
}

// Less its mean, as the network has it, and so loud that nothing is below the
// lowest energy of sherpa-onnx; the gain changes nothing else.
Floats Embed(Extractor model, Floats x, const std::string &file) {
  const double sum = std::accumulate(x.begin(), x.end(), 0.0);
  for (float &value : x) value = 32768 * (value - sum / x.size());
  auto *stream = SherpaOnnxSpeakerEmbeddingExtractorCreateStream(model);
  SherpaOnnxOnlineStreamAcceptWaveform(stream, 16000, x.data(), x.size());
  SherpaOnnxOnlineStreamInputFinished(stream);
  Require(SherpaOnnxSpeakerEmbeddingExtractorIsReady(model, stream), file,
          "shorter than 25 ms; record it again");
  auto *y = SherpaOnnxSpeakerEmbeddingExtractorComputeEmbedding(model, stream);
  Floats embedding(y, y + SherpaOnnxSpeakerEmbeddingExtractorDim(model));
  SherpaOnnxSpeakerEmbeddingExtractorDestroyEmbedding(y);
  SherpaOnnxDestroyOnlineStream(stream);
  Require(std::isfinite(embedding[0]), file, "has samples that are not finite");
  return embedding;
}

double Dot(const Floats &a, const Floats &b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}
Floats Formula() {
  Floats waveform(32000);
  long long s = 1;
  for (size_t n = 0; n < waveform.size(); ++n) {
    s = 16807 * s % 2147483647;
    waveform[n] = (s / 2147483647.0 - 0.5) * ((n % 4000 + 1) / 4000.0);
  }
  return waveform;
}

// Of the metadata: the key, 0x12, the length in bytes of seven bits, the value.
Floats ReadExpected(const std::string &model) {
  std::ifstream stream(model, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  const std::string key = "test_waveform_embedding\x12";
  const size_t place = bytes.rfind(key);
  Require(place != std::string::npos, model, "export --for=sherpa-onnx");
  const char *text = bytes.c_str() + place + key.size();
  while (*text++ & 0x80) continue;
  Floats values;
  for (char *end; *text == '[' || *text == ','; text = end)
    values.push_back(std::strtof(text + 1, &end));
  return values;
}

int main(int count, char **arguments) try {
  const std::vector<std::string> given(arguments + 1, arguments + count);
  const bool check = count == 3 && given[0] == "--check";
  Require(check || count == 4, "compare", "MODEL A.wav B.wav, or --check MODEL");
  const std::string model = given[check];
  const Floats expected = ReadExpected(model);
  SherpaOnnxSpeakerEmbeddingExtractorConfig config{model.c_str(), 1, 0, "cpu"};
  Extractor extractor = SherpaOnnxCreateSpeakerEmbeddingExtractor(&config);
  Require(extractor, model, "cannot be loaded; export it again");
  const Floats one =
      Embed(extractor, check ? Formula() : ReadSpeech(given[1]), given[1]);
  const Floats other =
      check ? expected : Embed(extractor, ReadSpeech(given[2]), given[2]);
  Require(one.size() == other.size(), model, "damaged; export it again");
  const double cosine =
      Dot(one, other) / std::sqrt(Dot(one, one) * Dot(other, other));
  std::cout << cosine << "\n";
  Require(!check || cosine > 1 - 1e-8, model, "computes something else here");
} catch (const std::exception &error) {
  std::cerr << "error: " << error.what() << "\n";
  return 1;
}
