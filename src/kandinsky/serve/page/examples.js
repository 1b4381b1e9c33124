// Prompts to begin with. Those of Nano were generated and looked at (docs/guides/page.md); those for the large models
// are of the length and detail that these were trained on.

const NANO = {
  en: [
    "a snowman", "a birthday cake", "a robot on a pink background",
    "a star on a purple background", "a rocket on a black background", "a panda on a blue background",
  ],
  ru: ["снеговик", "торт на день рождения", "робот на розовом фоне", "звезда на фиолетовом фоне", "ракета на черном фоне",
    "панда на синем фоне"],
};
const NANO2 = {
  en: [
    "a panda jumps on a blue background", "a cat left of a dog", "three penguins", "a rocket moves up on a black background",
    "a balloon grows", "a waving hand, medium skin tone",
  ],
  ru: ["панда прыгает на синем фоне", "кошка слева от собаки", "три пингвина", "ракета движется вверх на чёрном фоне",
    "воздушный шар растёт", "машущая рука, средний тон кожи"],
};
const LARGE = {
  en: [
    "A small wooden boat drifts across a misty lake at dawn, the camera glides low over still water, soft golden light",
    "Close-up of a potter's hands shaping wet clay on a spinning wheel, warm workshop light, shallow depth of field",
    "Snow falls over a quiet courtyard with lit windows, a cat walks along the fence, slow camera push-in",
  ],
  ru: [
    "Небольшая деревянная лодка плывёт по туманному озеру на рассвете, камера скользит низко над водой, золотистый свет",
    "Крупный план: руки гончара формируют влажную глину на круге, тёплый свет мастерской, малая глубина резкости",
    "Снег падает в тихом дворе со светящимися окнами, кошка идёт по забору, камера медленно приближается",
  ],
};
const OF = { nano: NANO, nano2: NANO2 };
const SOUND = { en: ["drum", "clap", "bell"], ru: ["барабан", "хлопок", "колокольчик"] };

export function examplesFor(model, language) {
  if (!model) return [];
  if (model.makes === "sound") return SOUND[language];
  return (OF[model.id.split("-")[0]] ?? LARGE)[language];
}
