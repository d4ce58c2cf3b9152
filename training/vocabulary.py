"""The names that the model knows, and the cut-outs that show them.

A few frequent names work better than many rare ones: an object becomes recognisable after about 3,000 views.
So the names are everyday things that a person recognises at once, with one emoji and the synonyms of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    word: str
    emoji: str  # code point, as in the file names of the emoji
    synonyms: tuple[str, ...] = ()
    drawings: tuple[str, ...] = ()  # file names of clip art, without the extension

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.word, *self.synonyms)


def _read(table: str) -> Iterator[Name]:
    for line in table.strip().splitlines():
        words, _, drawings = line.partition("::")
        emoji, word, *synonyms = (part.strip() for part in words.split("|"))
        yield Name(word, emoji, tuple(synonyms), tuple(drawings.split()))


# Code point | name | synonyms :: drawings. If there are several drawings, the last is held out.
NAMES = tuple(
    _read(
        """
    1f34e | red apple | apple :: an_apple_01 apple cartoon_apple_k_yager_01 another_apple_01
    1f34f | green apple
    1f350 | pear :: pear pear_simple pear_01
    1f34a | orange | tangerine :: orange orange_simple orange_dave_pena_01
    1f34b | lemon :: lemon lemon_simple lemon_whole_ganson
    1f34c | banana :: banana bananas_nicu_buculei_01
    1f349 | watermelon | slice of watermelon :: watermelon_simple
    1f347 | grapes :: grapes_01 grapes_simple
    1f353 | strawberry :: strawberry strawberry_simple strawberry_jonathan_diet_01 strawberry_01
    1f352 | cherries | cherry :: cherries
    1f351 | peach
    1f34d | pineapple :: pineapple
    1f345 | tomato
    1f955 | carrot
    1f33d | corn | ear of corn :: corn_cob
    1f966 | broccoli
    1f951 | avocado
    1f346 | eggplant | aubergine
    1f344 | mushroom | red mushroom :: mushroom mushroom_benji_park_
    1f383 | pumpkin | jack-o-lantern :: pumpkin_erik_postma_01 pumpkin2_yemu_01
    1f35e | bread | loaf of bread :: bread bread_01
    1f950 | croissant :: croissant_01 croissant_gerald_g._01
    1f9c0 | cheese | piece of cheese :: cheese_01
    1f355 | pizza | slice of pizza :: pizza_pepperoni pizza_slice_fco._andrade_01
    1f354 | hamburger | burger :: hamburger_ganson burger_http_www.treebui_r
    1f35f | french fries | fries :: french_fries_juliane_kr_r
    1f32d | hot dog :: hot_dog hot_dog_juliane_krug_r
    1f373 | fried egg | egg
    1f382 | cake | birthday cake :: birthday_cake pink_cake_gabrielle_now_r
    1f369 | donut | doughnut
    1f36a | cookie | biscuit
    1f366 | ice cream | ice cream cone :: cone_soft_vanilla cone1_ganson cone2_ganson cone_soft_chocolate
    1f36d | lollipop | candy :: lollipop_dave_pena_01
    2615 | coffee | cup of coffee | cup :: coffee_ganson coffee
    1f37a | beer | mug of beer :: beer beer1
    1f377 | wine glass | glass of wine | wine
    1f431 | cat | kitten
    1f436 | dog | puppy :: bored_dog_01
    1f430 | rabbit | bunny
    1f98a | fox
    1f43b | bear
    1f43c | panda
    1f42f | tiger
    1f981 | lion
    1f42e | cow
    1f437 | pig
    1f438 | frog
    1f435 | monkey :: happy_monkey_benji_park_01 monkey_head_nicu_buculei_01
    1f434 | horse
    1f418 | elephant
    1f414 | chicken | hen
    1f427 | penguin :: new_penguin_charles_mcco_01 emperor_penguin_ralf_ste_01
    1f426 | bird
    1f986 | duck :: rubber_duck1_ganson
    1f989 | owl
    1f98b | butterfly :: farfalla_butterfly_fra1 butterfly_jonvdveen_01 butterfly_jonathan_dietr_01
    1f41d | bee | honeybee :: bee bee1_mimooh_01
    1f41e | ladybug | ladybird :: ladybug_01 ladybug_02
    1f420 | fish | tropical fish :: brown_fish_01
    1f433 | whale
    1f419 | octopus
    1f422 | turtle | tortoise :: turtle_jurgen_gaeremyn_01
    1f40c | snail
    1f980 | crab
    1f697 | car | red car | automobile :: car skoda_car_alejandro_teja_ car_jamin_ellis_
    1f68c | bus :: bus1_jarno_vasamaa_01 bus2_jarno_vasamaa_01
    1f69a | truck | lorry :: truck_jarno_vasamaa_ truck_jarno_vasamaa1
    1f692 | fire truck | fire engine :: fire_engine_mimooh_01
    1f6b2 | bicycle | bike :: bicycle_01
    1f3cd | motorcycle | motorbike
    2708 | airplane | plane
    1f681 | helicopter
    1f680 | rocket | spaceship :: rocket
    26f5 | sailboat | boat :: sailboat_illustration boat_jarno_vasamaa1
    1f682 | train | locomotive :: kiddy_train_orlando_kara_
    26bd | soccer ball | football :: football_ball_brice_boye_01
    1f3c0 | basketball
    1f3be | tennis racket | tennis racket and ball
    1f388 | balloon | red balloon :: balloon-red-aj balloon-blue-aj balloon-yellow-aj balloon-green-aj
    1f381 | gift | present :: gift01 gift02 gift04 gift05 gift03
    2614 | umbrella :: umbrella canada_umbrella_ganson
    1f451 | crown | golden crown
    1f3b8 | guitar :: electric_guitar_andrea__01r guitar_jarno_vasamaa1 guitar_profile_philippe__01
    1f4a1 | light bulb | bulb :: bulb
    1f511 | key | golden key
    1f4d5 | book | red book :: book_01 closed_book_01
    23f0 | alarm clock | clock
    1fa91 | chair | wooden chair
    1f3a9 | hat | top hat
    1f45f | shoe | sneaker
    1f392 | backpack | bag
    1f4f7 | camera :: digital_camera_nicu_bucu_01 camera_michael_tunniclif_01
    1f9f8 | teddy bear | teddy :: simple_teddy_bear_gerald_01 stylized_teddy_bear_gera_01
    1f3c6 | trophy | cup of gold
    26c4 | snowman :: snowman_01
    2764 | heart | red heart :: heart heart_jon_phillips_01 heart_highlight_jon_phil_01
    2b50 | star | yellow star
    1f3e0 | house | home :: house small_house_01 house_juliane_krug_01
    1f333 | tree :: cartoon_tree_01
    1f332 | pine tree | fir tree
    1f334 | palm tree | palm
    1f335 | cactus
    1f33b | sunflower
    1f339 | rose | red rose
    1f337 | tulip
    1f33a | flower | pink flower | hibiscus :: flower_02 red_flower_01 flower_01
    1f340 | four leaf clover | clover
        """
    )
)

# Words that are not names, with related names. Used for the warning, not for training.
RELATED = {
    word: tuple(name.strip() for name in names.split("|"))
    for word, names in (
        line.strip().split(": ")
        for line in """
            fruit: red apple | orange | banana | strawberry
            vegetable: carrot | tomato | broccoli | corn
            food: pizza | hamburger | bread | cake
            snack: cookie | donut | french fries
            dessert: ice cream | cake | donut
            sandwich: hamburger | hot dog
            drink: coffee | beer | wine glass
            tea: coffee
            mug: coffee
            bottle: wine glass | beer
            bowl: coffee
            animal: cat | dog | rabbit | horse
            pet: cat | dog | rabbit
            mouse: rabbit | cat
            wolf: fox | dog
            sheep: cow | pig
            goat: cow | horse
            toad: frog
            ape: monkey
            parrot: bird | owl
            eagle: owl | bird
            goose: duck | chicken
            insect: bee | butterfly | ladybug
            shark: whale | fish
            dolphin: whale | fish
            vehicle: car | bus | truck | bicycle
            van: bus | truck
            taxi: car
            ship: sailboat
            ball: soccer ball | basketball
            toy: teddy bear | balloon | rocket
            doll: teddy bear
            box: gift
            parasol: umbrella
            piano: guitar
            violin: guitar
            lamp: light bulb
            magazine: book
            watch: alarm clock
            furniture: chair
            sofa: chair
            bench: chair
            stool: chair
            table: chair
            cap: hat
            boot: shoe
            clothes: hat | shoe
            suitcase: backpack
            phone: camera
            medal: trophy
            building: house
            castle: house
            cabin: house
            hut: house
            bush: tree | pine tree
            plant: cactus | tree | four leaf clover
            grass: four leaf clover
            lily: tulip | flower
            daisy: sunflower | flower
            leaf: four leaf clover | tree
            sun: sunflower | star
            moon: star
        """.strip().splitlines()
    )
}
